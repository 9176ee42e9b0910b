"""Nodes that draw pictures and nodes that read them."""

import time

from comfy_api.latest import io

from u1_core.workflow.drawing import CAPTION_QUESTION
from u1_core.workflow.picture_options import LIKE_INPUT

from .base import Node
from .inputs import GUIDANCE, SIZE, integer, number, picture_inputs, seed, text, think
from .types import CATEGORY, Model

MODEL_IN = Model.Input("model", tooltip="The model, with its LoRAs.")
IMAGES_OUT = io.Image.Output("images", tooltip="The pictures.")


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
                text("prompt", "What to draw.", lines=True, dynamic_prompts=True),
                *picture_inputs(*SIZE, "steps", "cfg", "seed", "batch", *GUIDANCE, "shift"),
                think(),
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
                text("prompt", "What to change.", lines=True, dynamic_prompts=True),
                *picture_inputs(
                    *(*SIZE, "steps", "cfg", "image_cfg", "seed", "batch", *GUIDANCE, "shift"),
                    more_sizes=(LIKE_INPUT,),
                    size=LIKE_INPUT,
                ),
                think(),
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
                text("prompt", "What to tell.", lines=True, dynamic_prompts=True),
                *picture_inputs(
                    *(*SIZE, "steps", "cfg", "image_cfg", "seed"),
                    own="9/16 of the model's own area",
                    width=1536,
                    height=1536,
                ),
                integer("max_tokens", 1024, 1, 8192, "Most tokens of text."),
                *picture_inputs("norm", "shift"),
                think(),
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
                text(
                    "question", "What to ask; <image> marks say where the pictures stand, if not in front.", lines=True
                ),
                integer("max_tokens", 1024, 1, 8192, "Most tokens of the answer."),
                number("temperature", 0.0, 0.0, 2.0, 0.05, "0 takes the likeliest token."),
                number(
                    *("top_p", 1.0, 0.01, 1.0, 0.01),
                    "Draw from the likeliest tokens that hold this share.",
                    advanced=True,
                ),
                seed("Fixes what is drawn: the same seed gives the same answer."),
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
                text("folder", "Folder of pictures: whole, or inside ComfyUI's input folder."),
                text(
                    "question",
                    "What the model is asked. A style LoRA wants captions that say nothing of the style.",
                    CAPTION_QUESTION,
                    lines=True,
                    advanced=True,
                ),
                integer("max_tokens", 120, 1, 1024, "Most tokens of a caption."),
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
                text("prompts", "One prompt a line; each is a row.", lines=True),
                text(
                    "loras",
                    "One LoRA a line, as FILE or FILE:STRENGTH in the loras folders, or the word none. Empty "
                    "compares the model as it is.",
                    lines=True,
                ),
                text("steps", "Numbers of steps, such as 50, 8.", "50"),
                text("cfg", "Guidance scales: one, or one for each number of steps.", "4"),
                *picture_inputs(*SIZE, "seed", "shift"),
                text("other_steps", "Numbers of steps of the other model.", "8"),
                text("other_cfg", "Guidance scales of the other model.", "1"),
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
