"""Nodes that open a model, put LoRAs on it and write them out."""

from comfy_api.latest import io

from u1_core.workflow.loras import FORMS, MERGED_DTYPES

from .base import Node, studio
from .types import CATEGORY, Model

MODEL_OUT = Model.Output("u1_model", display_name="u1 model", tooltip="The model, for the other U1 nodes.")


class LoadU1Bf16Offload(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadU1Bf16Offload",
            display_name="Load U1 (bf16, offload)",
            category=CATEGORY,
            description="Opens a SenseNova-U1 model. Weights are read when they are first needed and shared by every "
            "U1 node and by training; layers that do not fit on the card are read as they are used.",
            search_aliases=["sensenova", "u1", "load model", "checkpoint", "u1.5", "a3b", "nano", "tiny"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=studio().model_names(),
                    tooltip="Model folders (config.json with .safetensors) in models/u1, diffusion_models, checkpoints "
                    "and extra_model_paths; built-in nano draws small scenes on any CPU, the tiny ones noise.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "bf16", "fp32"],
                    default="auto",
                    advanced=True,
                    tooltip="Numbers that are computed in: auto is bf16 on a card, fp32 on a CPU.",
                ),
                io.String.Input(
                    "hub_id",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="owner/name of a model on the Hugging Face hub, in place of the one above; fetched to the "
                    "hub's cache if it is not there yet. An interrupted download goes on where it stopped.",
                ),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Kind, size on disk and what it runs on.")],
        )


class LoadU1LoRA(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadU1LoRA",
            display_name="Load U1 LoRA",
            category=CATEGORY,
            description="Puts a LoRA on a U1 model, beside its weights: the strength may change at any time, several "
            "may be chained, and nothing is reloaded. A LoRA of another kind of model is refused.",
            search_aliases=["lora", "lora strength", "sensenova lora", "style"],
            inputs=[
                Model.Input("model", tooltip="The model, or the output of another LoRA node."),
                _lora_input("A .safetensors file in ComfyUI's loras folders; what you train lands in loras/u1."),
                io.Float.Input(
                    "strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip="0 is without it, 1 as trained."
                ),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Modules and strength.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_) -> str:
        return _fingerprint(lora)


class StackUpstream8Step(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StackUpstream8Step",
            display_name="Stack the 8-step LoRA",
            category=CATEGORY,
            description="Puts the released 8-step LoRA under whatever follows. Sample with 8 steps and cfg 1 then. "
            "A run trained on its output learns a style that goes with it. Bypass the node to take it off.",
            search_aliases=["8 step", "turbo", "distilled", "fast", "lightning", "lora stack"],
            inputs=[
                Model.Input("model", tooltip="The model without it."),
                _lora_input("The 8-step LoRA that was released for this model."),
                io.String.Input(
                    "skip",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="Modules of it to leave out, by their path or the start of it, one a line.",
                ),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Modules and strength.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_) -> str:
        return _fingerprint(lora)


class ExportU1LoRA(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExportU1LoRA",
            display_name="Export U1 LoRA",
            category=CATEGORY,
            description="Writes a model's LoRA as one file that other loaders take too, with tensors that were trained "
            "whole folded into it by SVD, or writes a new model with all its LoRAs in the weights. Never overwrites.",
            search_aliases=["save lora", "merge lora", "fold", "svd", "extract", "bake"],
            inputs=[
                Model.Input("model", tooltip="A model with one LoRA, or with several to be merged."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default=FORMS[0],
                    tooltip="One LoRA file goes to loras/u1, a merged model to output/u1_models.",
                ),
                io.String.Input("name", default="exported", tooltip="Of the file or folder; it must be new."),
                io.Int.Input("rank", default=64, min=1, max=1024, tooltip="Of the terms that stand for whole tensors."),
                io.Combo.Input(
                    "dtype",
                    options=list(MERGED_DTYPES),
                    default="as it is",
                    advanced=True,
                    tooltip="Of a merged model's weights.",
                ),
            ],
            outputs=[
                io.String.Output("path", tooltip="What was written."),
                io.String.Output("about", tooltip="What became of each tensor."),
            ],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.prompt],
        )


def _lora_input(tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("lora", options=studio().lora_names(), tooltip=tooltip)


def _fingerprint(lora: str) -> str:
    """Changes when the file does."""
    path = studio().find_lora(lora)
    return f"{path} {path.stat().st_mtime_ns}"


NODES = [LoadU1Bf16Offload, StackUpstream8Step, LoadU1LoRA, ExportU1LoRA]
