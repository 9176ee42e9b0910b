"""`u1 edit`: change one to ten pictures as a prompt says."""

import argparse
from pathlib import Path

from PIL import Image

from u1_core.cli.drawing import add_drawing_options, begin_drawing
from u1_core.cli.options import stream_text
from u1_core.cli.progress import ProgressLine
from u1_core.data.buckets import Size, edit_size, parse_size
from u1_core.model.config import U1Config
from u1_core.sample.edit import edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to change")
    parser.add_argument("pictures", type=Path, nargs="+", help="one to ten pictures")
    add_drawing_options(
        parser, "the first picture's ratio at the model's own size", "let the model reason in words first"
    )
    parser.add_argument("--batch", type=int, default=1, help="pictures at once, from one seed (default 1)")


def run(args: argparse.Namespace) -> int:
    begun, drawing = begin_drawing(args, _size, args.batch), ProgressLine("drawing")
    drawn = edit(
        begun.session,
        args.prompt,
        begun.pictures,
        begun.settings,
        args.think,
        on_step=lambda step: drawing.steps(step.index + 1, step.steps),
        on_text=stream_text(args.json),
    )
    begun.report.facts["think"] = drawn.think_text
    begun.report.save(drawn.pictures, args.out)
    begun.report.finish()
    return 0


def _size(args: argparse.Namespace, config: U1Config, pictures: list[Image.Image]) -> Size:
    """What --size says, else the first picture's ratio at the model's own size."""
    side, pixels = config.token_pixels, config.native_pixels
    if args.size:
        return parse_size(args.size, side, pixels=pixels)
    return edit_size(*pictures[0].size, side, pixels)
