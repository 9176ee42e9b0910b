"""Nodes that open a model, put LoRAs on it and write them out."""

from comfy_api.latest import io

from u1_core.plan.budget import MODES
from u1_core.workflow.loras import FORMS, MERGED_DTYPES, NO_GGUF

from .base import Node, studio
from .inputs import choice, integer, number, switch, text
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
                choice(
                    "model",
                    studio().model_names(),
                    "Model folders (config.json with .safetensors) in models/u1, diffusion_models, checkpoints and "
                    "extra_model_paths; built-in nano draws small scenes on any CPU, the tiny ones noise.",
                ),
                choice(
                    "dtype",
                    ["auto", "bf16", "fp32"],
                    "Numbers that are computed in: auto is bf16 on a card, fp32 on a CPU.",
                    advanced=True,
                ),
                text(
                    "hub_id",
                    "owner/name of a model on the Hugging Face hub, in place of the one above; fetched to the hub's "
                    "cache if it is not there yet. An interrupted download goes on where it stopped.",
                    optional=True,
                    advanced=True,
                ),
                text(
                    "budget",
                    f"Memory of the card that may be used: {', '.join(MODES)}, or an amount such as 12GB. What does "
                    "not fit is streamed from host memory.",
                    "auto",
                    optional=True,
                ),
                choice(
                    "gguf",
                    [NO_GGUF, *studio().gguf_names()],
                    "A quantised .gguf file in place of the weights, for sampling; the model's config.json and "
                    "tokenizer are to lie beside it.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Kind, size on disk, and the plan.")],
            is_output_node=True,
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
                number("strength", 1.0, -4.0, 4.0, 0.05, "0 is without it, 1 as trained."),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Modules and strength.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None, **_) -> str:
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
                text(
                    "skip",
                    "Modules of it to leave out, by their path or the start of it, one a line.",
                    lines=True,
                    optional=True,
                    advanced=True,
                ),
                switch(
                    "folded",
                    False,
                    "Write it into the loaded weights: a step is then as fast as without it. Taken out again without "
                    "a reload. While a run trains on the same weights it stays beside them.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[MODEL_OUT, io.String.Output("about", tooltip="Modules and strength.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None, **_) -> str:
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
                choice("form", list(FORMS), "One LoRA file goes to loras/u1, a merged model to output/u1_models."),
                text("name", "Of the file or folder; it must be new.", "exported"),
                integer("rank", 64, 1, 1024, "Of the terms that stand for whole tensors."),
                choice("dtype", list(MERGED_DTYPES), "Of a merged model's weights.", "as it is", advanced=True),
            ],
            outputs=[
                io.String.Output("path", tooltip="What was written."),
                io.String.Output("about", tooltip="What became of each tensor."),
            ],
            is_output_node=True,
            not_idempotent=True,
        )


def _lora_input(tooltip: str) -> io.Combo.Input:
    return choice("lora", studio().lora_names(), tooltip)


def _fingerprint(lora: str | None) -> str:
    """Changes when the file does. None stands for a name that another node has yet to give."""
    if lora is None:
        return ""
    path = studio().find_lora(lora)
    return f"{path} {path.stat().st_mtime_ns}"


NODES = [LoadU1Bf16Offload, StackUpstream8Step, LoadU1LoRA, ExportU1LoRA]
