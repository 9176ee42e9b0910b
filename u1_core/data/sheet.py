"""A contact sheet: each picture as it is, with what is cut off dimmed, beside what the trainer sees of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from u1_core.data.dataset import Dataset
from u1_core.data.framing import Frame, Framing
from u1_core.data.picture_cache import PictureCache, TrainingPicture
from u1_core.data.pictures import from_pixels, open_picture
from u1_core.errors import U1Error

MOST = 60
"""Pictures of a large set that are shown."""
COLUMNS = 3
SIDE, GAP, LINE = 240, 12, 18
TEXT_LINES = 3
LEGEND = "Left: the picture; the frame is what is kept. Right: as it is trained; what a mask leaves out is tinted red."
PAPER, INK, FAINT, CUT, UNSEEN = "#16181d", "#f2f3f5", "#9aa1ad", "#ff5a4f", (220, 40, 60)


def contact_sheet(dataset: Dataset, pictures: PictureCache, framing: Framing, numbers: Sequence[int]) -> Image.Image:
    """The samples of these numbers, three to a row. One that cannot be read says so in its place."""
    rows = -(-len(numbers) // COLUMNS)
    wide, tall = 2 * SIDE + 3 * GAP, SIDE + TEXT_LINES * LINE + 2 * GAP
    header = LINE + GAP
    sheet = Image.new("RGB", (COLUMNS * wide + GAP, header + rows * tall + GAP), PAPER)
    ImageDraw.Draw(sheet).text((GAP, GAP), LEGEND, FAINT, _FONT)
    for place, number in enumerate(numbers):
        pictures.expect(numbers[place : place + 1 + pictures.ahead])
        left, top = GAP + place % COLUMNS * wide, header + GAP + place // COLUMNS * tall
        sheet.paste(_cell(dataset, pictures, framing, number), (left, top))
    return sheet


def _cell(dataset: Dataset, pictures: PictureCache, framing: Framing, number: int) -> Image.Image:
    cell = Image.new("RGB", (2 * SIDE + GAP, SIDE + TEXT_LINES * LINE + GAP), PAPER)
    sample, write = dataset[number], ImageDraw.Draw(cell)
    try:
        frame = framing.frame(*dataset.size(number))
        _paste(cell, _original(open_picture(dataset.picture(number), at_least=(2 * SIDE, 2 * SIDE)), frame), 0)
        _paste(cell, _seen(pictures.fetch(number)), SIDE + GAP)
        sizes = f"{frame.original[0]}x{frame.original[1]} to {frame.size[0]}x{frame.size[1]}"
        if frame.enlarged > 1:
            sizes += f", enlarged {frame.enlarged:.2f} times"
        if frame.lost > 0.005:
            sizes += f", {frame.lost:.0%} cut off"
    except U1Error as problem:
        sizes = str(problem).removeprefix(f"{dataset.place(number)}: ")
        write.rectangle((0, 0, SIDE, SIDE), outline=CUT)
        write.line((0, 0, SIDE, SIDE), CUT)
    lines = ((sample.id, INK), (sizes, FAINT), (" ".join(sample.caption.split()), FAINT))
    for number_of_line, (text, colour) in enumerate(lines):
        write.text((0, SIDE + 4 + number_of_line * LINE), _shortened(text, cell.width), colour, _FONT)
    return cell


_FONT = ImageFont.load_default(13)


def _original(image: Image.Image, frame: Frame) -> Image.Image:
    """The whole picture, small; outside the part that is kept it is dimmed, and the edge is drawn."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    across, down = image.width / frame.original[0], image.height / frame.original[1]
    left, top, right, bottom = frame.box
    box = (round(left * across), round(top * down), round(right * across) - 1, round(bottom * down) - 1)
    shade = Image.new("L", image.size, 170)
    ImageDraw.Draw(shade).rectangle(box, fill=0)
    image.paste("black", mask=shade)
    ImageDraw.Draw(image).rectangle(box, outline=CUT, width=2)
    return image


def _seen(picture: TrainingPicture) -> Image.Image:
    """The training picture, small; what its mask leaves out is tinted."""
    image = from_pixels(picture.pixels)
    if picture.mask is not None:
        unseen = Image.fromarray(np.uint8(0.6 * (255 - picture.mask.numpy())))
        image.paste(UNSEEN, mask=unseen)
    image.thumbnail((SIDE, SIDE))
    return image


def _paste(cell: Image.Image, image: Image.Image, left: int) -> None:
    cell.paste(image, (left + (SIDE - image.width) // 2, (SIDE - image.height) // 2))


def _shortened(text: str, width: int) -> str:
    """As much of `text` as fits, with an ellipsis where it is cut."""
    text = text[:200]
    while text and _FONT.getlength(text) > width:
        text = f"{text.rstrip('…')[:-1]}…" if len(text) > 1 else ""
    return text
