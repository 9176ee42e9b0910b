"""The pack's ComfyUI nodes (V3 schema). Thin: each wraps a function of `u1_core.workflow`, which knows no ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .engine import provide_engine


class U1StyleStudio(ComfyExtension):
    """What ComfyUI asks for the nodes, once, at start-up."""

    async def on_load(self) -> None:
        provide_engine()
        from .base import register_model_folder

        register_model_folder()
        from . import routes  # noqa: F401

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import drawing, models, training

        return [*models.NODES, *training.NODES, *drawing.NODES]
