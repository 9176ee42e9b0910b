"""Nodes of training: pictures, prefixes, spec, the run and what comes of it."""

import time

from comfy_api.latest import io

from u1_core.lora.spec import PRESETS
from u1_core.released import RELEASED
from u1_core.text.prompts import TEMPLATES
from u1_core.workflow.training import CUSTOM

from .base import Node, host
from .inputs import MOST_STEPS, choice, integer, number, seed, switch, text
from .types import CATEGORY, Dataset, LoraSpec, Model, PrefixCache, Run


class U1StyleDataset(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1StyleDataset",
            display_name="U1 Style Dataset",
            category=CATEGORY,
            description="Captioned pictures to train on, checked before a run is spent on them, with a contact sheet "
            "of what the trainer sees.",
            search_aliases=["training data", "captions", "images folder", "parquet", "kohya", "trigger word"],
            inputs=[
                text(
                    "folder",
                    "Folder of pictures with same-name .txt captions, or a .parquet or .arrow file: whole, or inside "
                    "ComfyUI's input folder.",
                ),
                text("trigger", 'Put before every caption, as "{trigger}, {caption}".'),
                choice(
                    "prompt_template",
                    list(TEMPLATES),
                    "official: the prompt that sampling uses; plain: the bare caption.",
                    "official",
                    advanced=True,
                ),
                number(
                    *("megapixels", 0.0, 0.0, 16.0, 0.25),
                    "Largest size a picture is trained at, in units of 1024x1024; 0 is the model's own size.",
                ),
                switch("snap_bucket", True, "Crop to the nearest official ratio; else keep the picture's."),
                switch(
                    "use_think_labels",
                    False,
                    "Put the text after a caption's ---think--- line into the prompt's think block.",
                    advanced=True,
                ),
                Model.Input("model", optional=True, tooltip="Checks captions and sizes against this model."),
                io.Image.Input("images", optional=True, tooltip="Pictures in place of a folder."),
                text("captions", "For images: one caption a line.", lines=True, optional=True),
            ],
            outputs=[
                Dataset.Output("dataset", tooltip="The dataset, for Train Style LoRA."),
                io.Image.Output("sheet", tooltip="Each picture as it is, and as the trainer sees it."),
                io.String.Output("report", tooltip="What the check found, the worst first."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()


class BuildPrefixKVCache(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BuildPrefixKVCache",
            display_name="Build Prefix KV Cache",
            category=CATEGORY,
            description="Runs every caption through the understanding tower once and keeps its K/V on disk: a run "
            "then needs only the generation tower, and the next run starts at once.",
            search_aliases=["prefix", "kv cache", "text encoder cache", "caption cache"],
            inputs=[
                Model.Input("model", tooltip="The model that will be trained, with the LoRA under it if any."),
                Dataset.Input("dataset", tooltip="Whose captions."),
                text(
                    "preview_prompts",
                    "Prompts of the run's previews, trigger included, one a line, for a run that names none itself.",
                    lines=True,
                    optional=True,
                ),
            ],
            outputs=[
                PrefixCache.Output("prefixes", tooltip="Where they are, for Train Style LoRA."),
                io.String.Output("about", tooltip="Captions, tokens, bytes and where they are kept."),
            ],
            is_output_node=True,
        )


class LoRASpec(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRASpec",
            display_name="U1 LoRA Spec",
            category=CATEGORY,
            description="Chooses the modules of SenseNova-U1 that a LoRA sits on, with their rank and alpha, "
            "and counts what that trains. Needs no model on disk.",
            search_aliases=["lora rank", "lora targets", "lora modules", "sensenova", "u1"],
            inputs=[
                choice("model", list(RELEASED), "The published model to count it for."),
                choice(
                    "preset",
                    [*PRESETS, CUSTOM],
                    "A spec with a name. attn_mlp at rank 64 is what style LoRAs start from; custom takes the spec "
                    "below.",
                    "attn_mlp",
                ),
                text(
                    "spec",
                    "Used when the preset is custom. TARGET=rRANKaALPHA between semicolons; a later entry overrides an "
                    "earlier one: attn=r64a64; mlp=r32; mlp_mot_gen.down_proj=off",
                    PRESETS["attn_mlp"],
                ),
                number("dropout", 0.0, 0.0, 0.95, 0.01, "Share of each term's inputs zeroed while training."),
                Model.Input("for_model", optional=True, tooltip="Count it for this model instead."),
            ],
            outputs=[
                LoraSpec.Output("lora_spec", display_name="lora spec", tooltip="The spec, for Train Style LoRA."),
                io.String.Output("summary", tooltip="Each target with its modules and parameters."),
            ],
            is_output_node=True,
        )


class TrainStyleLoRA(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainStyleLoRA",
            display_name="Train Style LoRA",
            category=CATEGORY,
            description="Starts a training run in the background and returns at once: go on prompting, the run gives "
            "way and goes on afterwards. One run at a time; others wait in line. The LoRA lands in loras/u1.",
            search_aliases=["train", "finetune", "lora training", "style", "dreambooth"],
            inputs=[
                Model.Input("model", tooltip="The model; with the 8-step LoRA under it if the style is for that."),
                Dataset.Input("dataset", tooltip="Pictures and captions."),
                text("name", "Of the run and its LoRA; numbered if it is taken.", "my_style"),
                *_learning_inputs(),
                *_looking_inputs(),
                switch("wait", False, "Block until the run has ended, for workflows that go on with it."),
                LoraSpec.Input("spec", optional=True, tooltip="Modules and ranks; without it attn_mlp_no_head."),
                PrefixCache.Input("prefixes", optional=True, tooltip="Prefix K/V that was built before."),
                text(
                    "recipe",
                    "A recipe file's path, or YAML: what it says goes before the fields above.",
                    lines=True,
                    optional=True,
                    advanced=True,
                ),
                switch(
                    "resume",
                    False,
                    "Go on with the run of this name, if there is one, in place of beginning another. Fields may not "
                    "have changed, but steps.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                Run.Output("run", tooltip="The run, for U1 Training Run."),
                io.String.Output("run_name", tooltip="Its name."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        host().unload_others()
        return super().execute(**inputs)


class U1TrainingRun(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1TrainingRun",
            display_name="U1 Training Run",
            category=CATEGORY,
            description="Puts the LoRA that a run saved last, or at one step, on a model, and shows its loss.",
            search_aliases=["checkpoint", "loss graph", "training status", "latest lora"],
            inputs=[
                Run.Input("run", optional=True, tooltip="The run."),
                text("name", "A run's name, where none is connected."),
                integer("step", 0, 0, MOST_STEPS, "A checkpoint's step; 0 is what was saved last."),
                switch("wait", True, "Wait until the run has ended."),
                number("strength", 1.0, -4.0, 4.0, 0.05, "Of the LoRA on the model."),
                Model.Input("model", optional=True, tooltip="The model to put it on."),
                switch(
                    "live",
                    False,
                    "Take the weights as they are each time they are used, for as long as the run trains; does not "
                    "wait.",
                    optional=True,
                ),
            ],
            outputs=[
                Model.Output("u1_model", display_name="u1 model", tooltip="The model with the run's LoRA."),
                io.String.Output("lora_path", tooltip="The LoRA's file."),
                io.Image.Output("chart", tooltip="Loss by step."),
                io.String.Output("status", tooltip="State, step and file."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()


def _learning_inputs() -> list[io.Input]:
    """What decides what is learned."""
    return [
        integer("steps", 6000, 1, MOST_STEPS, "Updates of the weights."),
        number("lr", 5e-5, 1e-8, 1.0, 1e-6, "Learning rate.", round=1e-9),
        choice(
            "loss",
            ["x0", "v", "x0_huber", "v_huber"],
            "Error of the predicted picture (x0) or of the velocity (v), squared or Huber.",
            advanced=True,
        ),
        choice("t_distribution", ["uniform", "logit_normal"], "How timesteps are drawn.", advanced=True),
        number(
            *("caption_dropout", 0.0, 0.0, 1.0, 0.01),
            "Share of steps that see the empty prompt in place of the caption.",
            advanced=True,
        ),
        choice(
            "optimizer",
            ["auto", "adamw", "paged_adamw8bit"],
            "auto takes paged_adamw8bit on a card with bitsandbytes, else adamw.",
            advanced=True,
        ),
        integer("grad_accum", 1, 1, 1024, "Pictures averaged into one update.", advanced=True),
        integer("checkpoint_every", 600, 0, MOST_STEPS, "Save each so many steps; 0 saves at the end only."),
        seed("Fixes the data order, t, noise, dropout and the LoRA's first values.", 0, changes=False),
        switch(
            "train_heads",
            True,
            "Train the embedders and the head whole beside the LoRA, as the reference recipe does.",
            advanced=True,
        ),
    ]


def _looking_inputs() -> list[io.Input]:
    """How a run looks at itself."""
    return [
        integer(
            *("validate_every", 300, 0, MOST_STEPS),
            "Compare with the untrained model on fixed pictures each so many steps; 0 does not.",
        ),
        integer("preview_every", 600, 0, MOST_STEPS, "Draw each so many steps; 0 does not."),
        text(
            "preview_prompts",
            "Prompts of the previews, trigger included, one a line; none takes the first two captions.",
            lines=True,
        ),
        integer("preview_steps", 50, 1, 200, "Steps of a preview; 8 with the 8-step LoRA.", advanced=True),
        number(
            *("preview_cfg", 4.0, 1.0, 30.0, 0.1),
            "Guidance scale of a preview; 1 with the 8-step LoRA.",
            advanced=True,
        ),
    ]


NODES = [U1StyleDataset, BuildPrefixKVCache, LoRASpec, TrainStyleLoRA, U1TrainingRun]
