"""Nodes of training: pictures, prefixes, spec, the run and what comes of it."""

import time

import comfy.model_management
from comfy_api.latest import io

from u1_core.lora.spec import PRESETS
from u1_core.released import RELEASED
from u1_core.text.prompts import TEMPLATES
from u1_core.workflow.training import CUSTOM

from .base import Node
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
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder of pictures with same-name .txt captions, or a .parquet or .arrow file: whole, or "
                    "inside ComfyUI's input folder.",
                ),
                io.String.Input("trigger", default="", tooltip='Put before every caption, as "{trigger}, {caption}".'),
                io.Combo.Input(
                    "prompt_template",
                    options=list(TEMPLATES),
                    default="official",
                    advanced=True,
                    tooltip="official: the prompt that sampling uses; plain: the bare caption.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.25,
                    tooltip="Largest size a picture is trained at, in units of 1024x1024; 0 is the model's own size.",
                ),
                io.Boolean.Input(
                    "snap_bucket", default=True, tooltip="Crop to the nearest official ratio; else keep the picture's."
                ),
                io.Boolean.Input(
                    "use_think_labels",
                    default=False,
                    advanced=True,
                    tooltip="Put the text after a caption's ---think--- line into the prompt's think block.",
                ),
                Model.Input("model", optional=True, tooltip="Checks captions and sizes against this model."),
                io.Image.Input("images", optional=True, tooltip="Pictures in place of a folder."),
                io.String.Input(
                    "captions", default="", multiline=True, optional=True, tooltip="For images: one caption a line."
                ),
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
                io.Combo.Input("model", options=list(RELEASED), tooltip="The published model to count it for."),
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
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=0.95,
                    step=0.01,
                    tooltip="Share of each term's inputs zeroed while training.",
                ),
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
                io.String.Input(
                    "name", default="my_style", tooltip="Of the run and its LoRA; numbered if it is taken."
                ),
                io.Int.Input("steps", default=6000, min=1, max=1_000_000, tooltip="Updates of the weights."),
                io.Float.Input("lr", default=5e-5, min=1e-8, max=1.0, step=1e-6, round=1e-9, tooltip="Learning rate."),
                io.Combo.Input(
                    "loss",
                    options=["x0", "v", "x0_huber", "v_huber"],
                    default="x0",
                    advanced=True,
                    tooltip="Error of the predicted picture (x0) or of the velocity (v), squared or Huber.",
                ),
                io.Combo.Input(
                    "t_distribution",
                    options=["uniform", "logit_normal"],
                    default="uniform",
                    advanced=True,
                    tooltip="How timesteps are drawn.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of steps that see the empty prompt in place of the caption.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=["auto", "adamw", "paged_adamw8bit"],
                    default="auto",
                    advanced=True,
                    tooltip="auto takes paged_adamw8bit on a card with bitsandbytes, else adamw.",
                ),
                io.Int.Input(
                    "grad_accum",
                    default=1,
                    min=1,
                    max=1024,
                    advanced=True,
                    tooltip="Pictures averaged into one update.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=600,
                    min=0,
                    max=1_000_000,
                    tooltip="Save each so many steps; 0 saves at the end only.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Fixes the data order, t, noise, dropout and the LoRA's first values.",
                ),
                io.Boolean.Input(
                    "train_heads",
                    default=True,
                    advanced=True,
                    tooltip="Train the embedders and the head whole beside the LoRA, as the reference recipe does.",
                ),
                io.Int.Input(
                    "validate_every",
                    default=300,
                    min=0,
                    max=1_000_000,
                    tooltip="Compare with the untrained model on fixed pictures each so many steps; 0 does not.",
                ),
                io.Int.Input(
                    "preview_every", default=600, min=0, max=1_000_000, tooltip="Draw each so many steps; 0 does not."
                ),
                io.String.Input(
                    "preview_prompts",
                    default="",
                    multiline=True,
                    tooltip="Prompts of the previews, trigger included, one a line; none takes the first two captions.",
                ),
                io.Int.Input(
                    "preview_steps",
                    default=50,
                    min=1,
                    max=200,
                    advanced=True,
                    tooltip="Steps of a preview; 8 with the 8-step LoRA.",
                ),
                io.Float.Input(
                    "preview_cfg",
                    default=4.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance scale of a preview; 1 with the 8-step LoRA.",
                ),
                io.Boolean.Input(
                    "wait", default=False, tooltip="Block until the run has ended, for workflows that go on with it."
                ),
                LoraSpec.Input("spec", optional=True, tooltip="Modules and ranks; without it attn_mlp_no_head."),
                PrefixCache.Input("prefixes", optional=True, tooltip="Prefix K/V that was built before."),
                io.String.Input(
                    "recipe",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="A recipe file's path, or YAML: what it says goes before the fields above.",
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
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
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
                io.String.Input("name", default="", tooltip="A run's name, where none is connected."),
                io.Int.Input(
                    "step", default=0, min=0, max=1_000_000, tooltip="A checkpoint's step; 0 is what was saved last."
                ),
                io.Boolean.Input("wait", default=True, tooltip="Wait until the run has ended."),
                io.Float.Input(
                    "strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip="Of the LoRA on the model."
                ),
                Model.Input("model", optional=True, tooltip="The model to put it on."),
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


NODES = [U1StyleDataset, BuildPrefixKVCache, LoRASpec, TrainStyleLoRA, U1TrainingRun]
