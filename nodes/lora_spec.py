"""The node that says which modules a LoRA sits on."""

from comfy_api.latest import io, ui

from u1_core.lora.plan import LoraPlan, plan_lora
from u1_core.lora.spec import PRESETS
from u1_core.released import RELEASED, released_config

CATEGORY = "U1 Style Studio"
CUSTOM = "custom"

LoraSpecType = io.Custom("U1_LORA_SPEC")
"""Carries the spec as text, the way a recipe has it under `lora.spec`."""


class LoRASpec(io.ComfyNode):
    """A preset or a spec, checked against a model, with the modules and parameters it comes to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1LoRASpec",
            display_name="U1 LoRA Spec",
            category=CATEGORY,
            description="Chooses the modules of SenseNova-U1 that a LoRA sits on, with their rank and alpha, "
            "and counts what that trains. Needs no model on disk.",
            search_aliases=["lora rank", "lora targets", "lora modules", "sensenova", "u1"],
            inputs=[
                io.Combo.Input("model", options=list(RELEASED), tooltip="The model that the LoRA is for."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default="attn_mlp",
                    tooltip="A spec with a name. attn_mlp at rank 64 is what style LoRAs start from; "
                    "custom takes the spec below.",
                ),
                io.String.Input(
                    "spec",
                    default=PRESETS["attn_mlp"],
                    tooltip="Used when the preset is custom. TARGET=rRANKaALPHA between semicolons; a later entry "
                    "overrides an earlier one: attn=r64a64; mlp=r32; mlp_mot_gen.down_proj=off",
                ),
            ],
            outputs=[
                LoraSpecType.Output("lora_spec", display_name="lora spec", tooltip="The spec, for a U1 training node."),
                io.String.Output("summary", tooltip="Each target with its modules and parameters."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: str, preset: str, spec: str) -> io.NodeOutput:
        text = spec if preset == CUSTOM else PRESETS[preset]
        summary = summarise(model, plan_lora(released_config(model), spec if preset == CUSTOM else preset))
        return io.NodeOutput(text, summary, ui=ui.PreviewText(summary))


def summarise(model: str, plan: LoraPlan) -> str:
    """A plan as a few lines of text: the totals, then a line for each target."""
    lines = [f"{model}: {len(plan.modules)} modules, {plan.parameters:,} parameters"]
    for target, (modules, parameters) in plan.by_target().items():
        lines.append(f"{target}: {modules} modules, {parameters:,} parameters")
    if plan.absent:
        lines.append(f"not in this model: {', '.join(plan.absent)}")
    return "\n".join(lines)
