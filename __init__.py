"""Where ComfyUI enters the pack: the nodes of `nodes/`, and for the browser what lies in `js/`."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    from .nodes import U1StyleStudio

    return U1StyleStudio()
