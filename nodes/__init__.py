"""The pack's ComfyUI nodes (V3 schema). Thin: they read their inputs and call `u1_core`, which knows no ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .engine import provide_engine


class U1StyleStudio(ComfyExtension):
    """What ComfyUI asks for the nodes, once, at start-up."""

    async def on_load(self) -> None:
        provide_engine()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .lora_spec import LoRASpec

        return [LoRASpec]
