"""Nodes that draw pictures and nodes that read them."""

import time

from comfy_api.latest import io

from u1_core.sample.guidance import NORMS
from u1_core.workflow.drawing import CAPTION_QUESTION, CUSTOM_SIZE, LIKE_INPUT, RATIOS

from .base import Node
from .types import CATEGORY, Model

MODEL_IN = Model.Input("model", tooltip="The model, with its LoRAs.")
IMAGES_OUT = io.Image.Output("images", tooltip="The pictures.")


def _sizes(first: str, own: str, side: int, more: tuple[str, ...] = ()) -> list[io.Input]:
    return [
        io.Combo.Input(
            "size",
            options=[*more, *RATIOS, CUSTOM_SIZE],
            default=first,
            tooltip=f"A ratio that the model was trained at, at {own}, or the width and height below.",
        ),
        io.Int.Input(
            "width", default=side, min=8, max=8192, step=8, advanced=True, tooltip=f"Used when size is {CUSTOM_SIZE}."
        ),
        io.Int.Input(
            "height", default=side, min=8, max=8192, step=8, advanced=True, tooltip=f"Used when size is {CUSTOM_SIZE}."
        ),
        io.Float.Input(
            "megapixels",
            default=0.0,
            min=0.0,
            max=16.0,
            step=0.25,
            advanced=True,
            tooltip=f"Area of a ratio in units of 1024x1024 pixels; 0 is {own}.",
        ),
    ]


def _steps() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=50, min=1, max=200, tooltip="Steps; 8 with the 8-step LoRA."),
        io.Float.Input(
            "cfg", default=4.0, min=1.0, max=30.0, step=0.1, tooltip="Guidance scale; 1 with the 8-step LoRA."
        ),
    ]


def _image_cfg() -> io.Input:
    return io.Float.Input(
        "image_cfg", default=1.0, min=0.0, max=30.0, step=0.1, advanced=True, tooltip="Guidance scale of the pictures."
    )


def _seed() -> io.Input:
    return io.Int.Input(
        "seed",
        default=42,
        min=0,
        max=2**63 - 1,
        control_after_generate=True,
        tooltip="Fixes the noise: the same seed gives the same picture.",
    )


def _finer(interval: bool = True) -> list[io.Input]:
    ends = [
        io.Float.Input(
            name,
            default=value,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip=f"Guide {words} this t; 0 is noise.",
        )
        for name, value, words in (("interval_from", 0.0, "from"), ("interval_to", 1.0, "up to"))
    ]
    return [
        io.Combo.Input(
            "norm", options=list(NORMS), default="none", advanced=True, tooltip="How guidance is held back in norm."
        ),
        *(ends if interval else []),
        io.Float.Input(
            "shift",
            default=3.0,
            min=0.1,
            max=20.0,
            step=0.1,
            advanced=True,
            tooltip="More of the steps near the noise.",
        ),
        io.Boolean.Input("think", default=False, tooltip="Let the model reason in words before it draws."),
    ]


def _batch() -> io.Input:
    return io.Int.Input("batch", default=1, min=1, max=16, tooltip="Pictures at once, from one seed.")


class U1Sample(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1Sample",
            display_name="U1 Sample",
            category=CATEGORY,
            description="Draws a prompt. Every step shows the picture it is heading for. Works while a run is "
            "training: the run gives way and goes on afterwards.",
            search_aliases=["text to image", "t2i", "generate", "sampler", "ksampler", "sensenova", "think"],
            inputs=[
                MODEL_IN,
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What to draw."),
                *_sizes("1:1", "the model's own size", 2048),
                *_steps(),
                _seed(),
                _batch(),
                *_finer(),
            ],
            outputs=[IMAGES_OUT, io.String.Output("thoughts", tooltip="The reasoning, if the model was let think.")],
        )


class U1Edit(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1Edit",
            display_name="U1 Edit",
            category=CATEGORY,
            description="Draws what a prompt makes of one to ten pictures.",
            search_aliases=["image edit", "image to image", "img2img", "instruct", "reference"],
            inputs=[
                MODEL_IN,
                io.Image.Input("images", tooltip="The pictures to change; a batch is taken as several."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What to change."),
                *_sizes(LIKE_INPUT, "the model's own size", 2048, (LIKE_INPUT,)),
                *_steps(),
                _image_cfg(),
                _seed(),
                _batch(),
                *_finer(),
                io.Image.Input("more_images", optional=True, tooltip="Further pictures, which may have another size."),
            ],
            outputs=[IMAGES_OUT, io.String.Output("thoughts", tooltip="The reasoning, if the model was let think.")],
        )


class U1Interleave(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1Interleave",
            display_name="U1 Interleave",
            category=CATEGORY,
            description="Writes text with pictures in between, up to ten; each is looked at before the text goes on.",
            search_aliases=["story", "illustrated text", "text and images", "multimodal"],
            inputs=[
                MODEL_IN,
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What to tell."),
                *_sizes("1:1", "9/16 of the model's own area", 1536),
                *_steps(),
                _image_cfg(),
                _seed(),
                io.Int.Input("max_tokens", default=1024, min=1, max=8192, tooltip="Most tokens of text."),
                *_finer(interval=False),
                io.Image.Input("images", optional=True, tooltip="Pictures to start from."),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The pictures; one black one if none was drawn."),
                io.String.Output("text", tooltip="The text; [picture N] stands where the Nth picture was drawn."),
            ],
            is_output_node=True,
        )


class U1Ask(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1Ask",
            display_name="U1 Ask",
            category=CATEGORY,
            description="Asks the model about pictures, or just talks to it.",
            search_aliases=["vqa", "vision", "chat", "llm", "question", "describe"],
            inputs=[
                MODEL_IN,
                io.String.Input(
                    "question",
                    multiline=True,
                    tooltip="What to ask; <image> marks say where the pictures stand, if not in front.",
                ),
                io.Int.Input("max_tokens", default=1024, min=1, max=8192, tooltip="Most tokens of the answer."),
                io.Float.Input(
                    "temperature", default=0.0, min=0.0, max=2.0, step=0.05, tooltip="0 takes the likeliest token."
                ),
                io.Float.Input(
                    "top_p",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Draw from the likeliest tokens that hold this share.",
                ),
                _seed(),
                io.Image.Input("images", optional=True, tooltip="Pictures it is about."),
            ],
            outputs=[io.String.Output("answer", tooltip="What the model says.")],
            is_output_node=True,
        )


class U1CaptionDataset(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1CaptionDataset",
            display_name="U1 Caption Dataset",
            category=CATEGORY,
            description="Has the model write a caption of the content for every picture that has no .txt beside it. "
            "Captions that are there are never touched.",
            search_aliases=["caption", "tagger", "describe images", "txt", "dataset"],
            inputs=[
                MODEL_IN,
                io.String.Input("folder", tooltip="Folder of pictures: whole, or inside ComfyUI's input folder."),
                io.String.Input(
                    "question",
                    default=CAPTION_QUESTION,
                    multiline=True,
                    advanced=True,
                    tooltip="What the model is asked. A style LoRA wants captions that say nothing of the style.",
                ),
                io.Int.Input("max_tokens", default=120, min=1, max=1024, tooltip="Most tokens of a caption."),
            ],
            outputs=[
                io.String.Output("folder", tooltip="The folder, for U1 Style Dataset."),
                io.String.Output("captions", tooltip="What was written."),
            ],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()


class U1CompareGrid(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="U1CompareGrid",
            display_name="U1 Compare Grid",
            category=CATEGORY,
            description="A labelled sheet: a row for each prompt, a column for each model, LoRA and number of steps, "
            "all from the same seed.",
            search_aliases=["xy plot", "grid", "contact sheet", "comparison", "side by side"],
            inputs=[
                MODEL_IN,
                io.String.Input("prompts", multiline=True, tooltip="One prompt a line; each is a row."),
                io.String.Input(
                    "loras",
                    default="",
                    multiline=True,
                    tooltip="One LoRA a line, as FILE or FILE:STRENGTH in the loras folders, or the word none. Empty "
                    "compares the model as it is.",
                ),
                io.String.Input("steps", default="50", tooltip="Numbers of steps, such as 50, 8."),
                io.String.Input("cfg", default="4", tooltip="Guidance scales: one, or one for each number of steps."),
                *_sizes("1:1", "the model's own size", 2048),
                _seed(),
                io.Float.Input(
                    "shift", default=3.0, min=0.1, max=20.0, step=0.1, advanced=True, tooltip="More steps near noise."
                ),
                io.String.Input("other_steps", default="8", tooltip="Numbers of steps of the other model."),
                io.String.Input("other_cfg", default="1", tooltip="Guidance scales of the other model."),
                Model.Input(
                    "other_model",
                    optional=True,
                    tooltip="A second model to compare with, such as the one with 8 steps.",
                ),
            ],
            outputs=[io.Image.Output("sheet", tooltip="The sheet.")],
            is_output_node=True,
        )


NODES = [U1Sample, U1Edit, U1Interleave, U1Ask, U1CaptionDataset, U1CompareGrid]
