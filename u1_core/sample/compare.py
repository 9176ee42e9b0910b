"""The same prompt and seed with and without LoRAs, at several numbers of steps, on one labelled sheet."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from u1_core.data.pictures import to_images
from u1_core.lora.adapter import Adapter
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session

FEW_STEPS = 16
"""Up to so many steps a few-step LoRA is in effect, if there is one, and no guidance, as such LoRAs want it."""

GAP, LETTER, LABEL_WIDTH = 12, 16, 200
PAPER, INK, FAINT = (250, 250, 248), (29, 31, 35), (95, 100, 109)


@dataclass(frozen=True)
class Look:
    """A row of the sheet: its label and the LoRAs in effect."""

    label: str
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column of the sheet: its label, how its pictures are drawn, and a LoRA that is in effect in all of it."""

    label: str
    settings: SampleSettings
    upstream: tuple[Adapter, ...] = ()


@dataclass(frozen=True)
class Block:
    """A prompt and its pictures: a row for each look, a picture in it for each column."""

    prompt: str
    rows: Sequence[Sequence[Image.Image]]


def columns_for(settings: SampleSettings, steps: Sequence[int], upstream: Adapter | None) -> list[Column]:
    """A column for each number of steps. With `upstream`, those of few steps have it in effect, at guidance scale 1."""
    columns = []
    for count in steps:
        few = upstream is not None and count <= FEW_STEPS
        guidance = replace(settings.guidance, cfg_scale=1.0) if few else settings.guidance
        label = f"{count} steps, cfg {guidance.cfg_scale:g}" + (f"\n{upstream.name}" if few else "")
        columns.append(Column(label, replace(settings, steps=count, guidance=guidance), (upstream,) if few else ()))
    return columns


def draw_blocks(
    session: Session,
    prompts: Sequence[str],
    looks: Sequence[Look],
    columns: Sequence[Column],
    on_picture: Callable[[int, int], None] = lambda done, total: None,
) -> list[Block]:
    """Draw every picture. Raises U1Error for a LoRA that does not fit; the session's own LoRAs are put back."""
    before, done = session.adapters, 0
    total = len(prompts) * len(looks) * len(columns)
    blocks = []
    try:
        for prompt in prompts:
            rows = []
            for look in looks:
                rows.append([])
                for column in columns:
                    session.use([*column.upstream, *look.adapters])
                    rows[-1] += to_images(text_to_image(session, prompt, column.settings).pictures.cpu())
                    done += 1
                    on_picture(done, total)
            blocks.append(Block(prompt, rows))
    finally:
        session.adapters = before
    return blocks


def sheet(blocks: Sequence[Block], row_labels: Sequence[str], column_labels: Sequence[str]) -> Image.Image:
    """All pictures on one sheet: a row's label left of it, a column's above, each prompt over its pictures."""
    font = ImageFont.load_default(LETTER)
    pictures = [image for block in blocks for row in block.rows for image in row]
    wide, high = max(image.width for image in pictures), max(image.height for image in pictures)
    left = LABEL_WIDTH + 2 * GAP
    width = left + len(column_labels) * (wide + GAP)
    letters = int(width / (LETTER * 0.55))
    titles = [textwrap.wrap(block.prompt, letters) for block in blocks]
    heads = [wrapped(label, wide) for label in column_labels]
    line = int(LETTER * 1.3)
    head_height = GAP + line * max(len(head) for head in heads)
    heights = [GAP + line * len(title) + GAP + len(row_labels) * (high + GAP) for title in titles]
    paper = Image.new("RGB", (width, head_height + sum(heights) + GAP), PAPER)
    write = ImageDraw.Draw(paper)
    for place, head in enumerate(heads):
        write.multiline_text((left + place * (wide + GAP), GAP), "\n".join(head), INK, font, spacing=line - LETTER)
    top = head_height
    for block, title, height in zip(blocks, titles, heights, strict=True):
        write.multiline_text((GAP, top + GAP), "\n".join(title), FAINT, font, spacing=line - LETTER)
        y = top + GAP + line * len(title) + GAP
        for label, row in zip(row_labels, block.rows, strict=True):
            write.multiline_text((GAP, y), "\n".join(wrapped(label, LABEL_WIDTH)), INK, font, spacing=line - LETTER)
            for place, image in enumerate(row):
                paper.paste(image, (left + place * (wide + GAP), y))
            y += high + GAP
        top += height
    return paper


def wrapped(label: str, width: int) -> list[str]:
    """A label's lines, none longer than about `width` pixels."""
    letters = max(8, int(width / (LETTER * 0.55)))
    return [part for line in label.splitlines() for part in textwrap.wrap(line, letters)]
