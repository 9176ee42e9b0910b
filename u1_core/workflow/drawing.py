"""The nodes that draw and the nodes that read: text to image, edit, interleave, ask, captions, comparison sheets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from u1_core.data.buckets import edit_size
from u1_core.data.folder import PICTURE_SUFFIXES, picture_files
from u1_core.data.pictures import open_picture, to_images
from u1_core.errors import U1Error
from u1_core.sample.edit import edit
from u1_core.sample.interleave import interleave
from u1_core.sample.text_to_image import text_to_image
from u1_core.understand.ask import ask
from u1_core.understand.decode import TextSettings
from u1_core.weights.write import replacing
from u1_core.workflow.handles import LoraUse, Model, Result
from u1_core.workflow.picture_options import LIKE_INPUT, PictureOptions, draws
from u1_core.workflow.studio import Studio, Watch

CAPTION_QUESTION = (
    "Describe what this picture shows in one or two plain sentences: the things, people, places and what happens. "
    "Say nothing of its style, medium, colours or mood."
)
CELL_TEXT = 20
"""Pixels of a line of text on a sheet."""


@draws()
def sample(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    prompt: str,
    how: PictureOptions,
    think: bool = False,
) -> Result:
    """U1Sample: pictures of a prompt, and the reasoning before them."""
    with studio.using(model, watch) as session:
        settings = how.settings(how.sides(session.config))
        drawn = text_to_image(session, prompt, settings, think, watch.on_step, watch.on_text)
    pictures = to_image_tensor(drawn.pictures)
    return Result((pictures, drawn.think_text), pictures=pictures)


@draws(size=LIKE_INPUT)
def edit_pictures(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    images: Tensor,
    prompt: str,
    how: PictureOptions,
    think: bool = False,
    more_images: Tensor | None = None,
) -> Result:
    """U1Edit: what a prompt makes of one to ten pictures; those of `more_images` may have another size."""
    pictures = [*from_image_tensor(images), *(from_image_tensor(more_images) if more_images is not None else [])]
    with studio.using(model, watch) as session:
        config = session.config
        if how.size == LIKE_INPUT:
            sides = edit_size(*pictures[0].size, config.token_pixels, how.pixels(config.native_pixels))
        else:
            sides = how.sides(config)
        drawn = edit(session, prompt, pictures, how.settings(sides), think, None, watch.on_step, watch.on_text)
    edited = to_image_tensor(drawn.pictures)
    return Result((edited, drawn.think_text), pictures=edited)


@draws(width=1536, height=1536)
def tell_with_pictures(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    prompt: str,
    how: PictureOptions,
    max_tokens: int = 1024,
    think: bool = False,
    images: Tensor | None = None,
) -> Result:
    """U1Interleave: text with pictures in between. In the text, [picture N] stands where the Nth was drawn."""
    pictures = from_image_tensor(images) if images is not None else []
    text, drawn = "", []
    with studio.using(model, watch) as session:
        sides = how.sides_between_text(session.config)
        settings = how.settings(sides)
        told = interleave(session, prompt, pictures, settings, think, max_tokens=max_tokens, on_step=watch.on_step)
        for piece in told:
            watch.check()
            if isinstance(piece, str):
                watch.on_text(piece)
                text += piece
            else:
                drawn.append(to_image_tensor(piece))
                text += f"\n[picture {len(drawn)}]\n"
    shown = torch.cat(drawn) if drawn else torch.zeros(1, sides[1], sides[0], 3)
    return Result((shown, text.strip()), text.strip(), shown)


def answer(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    question: str,
    max_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 42,
    images: Tensor | None = None,
) -> Result:
    """U1Ask: what the model says to a question, about pictures or without any."""
    settings = TextSettings(temperature, top_p, seed=seed, max_tokens=max_tokens)
    pictures = from_image_tensor(images) if images is not None else []
    with studio.using(model, watch) as session:
        text = _said(ask(session, question, pictures, settings=settings), watch)
    return Result((text,), text)


def caption_folder(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    folder: str,
    question: str = CAPTION_QUESTION,
    max_tokens: int = 120,
) -> Result:
    """U1CaptionDataset: a .txt for every picture of a folder that has none. What is there is never touched.

    Raises U1Error if there is no such folder or no picture in it."""
    root = studio.find_folder(folder)
    if not root.is_dir():
        raise U1Error(f"{root}: there is no such folder; give a folder of pictures")
    pictures = sorted(picture_files(root).values())
    if not pictures:
        raise U1Error(f"{root}: holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
    without = [path for path in pictures if not path.with_suffix(".txt").exists()]
    lines = [f"{len(pictures)} pictures, {len(without)} without a caption"]
    with studio.using(model, watch) as session:
        for number, path in enumerate(without, start=1):
            said = ask(session, question, [open_picture(path)], settings=TextSettings(max_tokens=max_tokens))
            caption = " ".join(_said(said, watch).split())
            watch.on_progress(number, len(without))
            name = path.relative_to(root).as_posix()
            if caption:
                with replacing(path.with_suffix(".txt")) as file:
                    file.write(f"{caption}\n".encode())
            lines.append(f"{name}: {caption or 'the model said nothing; no caption was written'}")
    text = "\n".join(lines)
    return Result((str(root), text), text)


@draws()
def compare(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    prompts: str,
    loras: str = "",
    how: PictureOptions,
    steps: str = "50",
    cfg: str = "4",
    other_steps: str = "8",
    other_cfg: str = "1",
    other_model: Model | None = None,
) -> Result:
    """U1CompareGrid: a sheet with a row for each prompt and a column for each model, LoRA and number of steps."""
    rows = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not rows:
        raise U1Error("prompts is empty; write one prompt a line")
    sides = [(model, steps, cfg), *([(other_model, other_steps, other_cfg)] if other_model else [])]
    columns = [column for one, counts, scales in sides for column in _columns(studio, one, loras, counts, scales)]
    cells, done = [], 0
    for prompt in rows:
        for one, count, scale in columns:
            with studio.using(one, watch) as session:
                settings = replace(how, steps=count, cfg=scale).settings(how.sides(session.config))
                drawn = text_to_image(session, prompt, settings, on_step=watch.on_step)
            cells += to_images(drawn.pictures.cpu())
            done += 1
            watch.on_progress(done, len(rows) * len(columns))
    heads = [f"{_named(one)} · {count} steps · cfg {scale:g}" for one, count, scale in columns]
    shown = images_to_tensor([comparison_sheet(cells, heads, rows)])
    return Result((shown,), "\n".join(heads), shown)


def comparison_sheet(cells: Sequence[Image.Image], heads: Sequence[str], rows: Sequence[str]) -> Image.Image:
    """Pictures in rows with a word over each column and a line under each row. Cells may differ in size."""
    columns = len(heads)
    width = max(128, *(cell.width for cell in cells))
    height = max(cell.height for cell in cells)
    count = -(-len(cells) // columns)
    top = under = CELL_TEXT
    sheet = Image.new("RGB", (columns * width, top + count * (height + under)), "white")
    ink = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for column, head in enumerate(heads):
        ink.text((column * width + 4, 2), _cut(ink, head, width - 8, font), "black", font)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        x, y = column * width, top + row * (height + under)
        sheet.paste(cell, (x + (width - cell.width) // 2, y + (height - cell.height) // 2))
    for row, words in enumerate(rows):
        ink.text((4, top + row * (height + under) + height + 2), _cut(ink, words, sheet.width - 8, font), "black", font)
    return sheet


def to_image_tensor(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> IMAGE: (B, H, W, 3) in [0, 1], at the levels that a PNG of it has."""
    return images_to_tensor(to_images(pictures.cpu()))


def images_to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size -> IMAGE."""
    return torch.from_numpy(np.stack([np.array(image) for image in images])).float() / 255


def from_image_tensor(images: Tensor) -> list[Image.Image]:
    """IMAGE -> RGB images."""
    levels = images[..., :3].float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in levels]


def _said(pieces, watch: Watch) -> str:
    text = ""
    for piece in pieces:
        watch.check()
        watch.on_text(piece)
        text += piece
    return text.strip()


def _with_named_lora(studio: Studio, model: Model, line: str) -> Model:
    """A line "none" or "FILE" or "FILE:STRENGTH", FILE as `lora_names` has it."""
    name, colon, strength = line.strip().rpartition(":")
    try:
        value = float(strength) if colon else 1.0
    except ValueError:
        raise U1Error(f"loras: {line.strip()!r}: after the colon comes a strength such as 0.8") from None
    name = name if colon else line.strip()
    return model if name == "none" else model.with_lora(LoraUse(str(studio.find_lora(name)), value))


def _columns(studio: Studio, model: Model, loras: str, steps: str, cfg: str) -> list[tuple[Model, int, float]]:
    """(model with one LoRA or none, steps, cfg) for every LoRA and number of steps."""
    counts, scales = _numbers("steps", steps, int), _numbers("cfg", cfg, float)
    if len(scales) not in (1, len(counts)):
        raise U1Error(f"cfg has {len(scales)} numbers and steps {len(counts)}; give one for all, or one for each")
    scales = scales * len(counts) if len(scales) == 1 else scales
    lines = [line for line in loras.splitlines() if line.strip()]
    models = [_with_named_lora(studio, model, line) for line in lines] or [model]
    return [(one, count, scale) for one in models for count, scale in zip(counts, scales, strict=True)]


def _named(model: Model) -> str:
    loras = [f"{Path(lora.path).stem}" + f" x{lora.strength:g}" * (lora.strength != 1) for lora in model.loras]
    return " + ".join(loras) or model.name


def _numbers(name: str, text: str, kind: type) -> list:
    try:
        numbers = [kind(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise U1Error(f"{name} is {text!r}; give numbers above 0, such as 50, 8")
    return numbers


def _cut(ink: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.ImageFont) -> str:
    while text and ink.textlength(text, font) > width:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    return text
