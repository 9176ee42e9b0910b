"""`u1 interleave`: text with pictures in between."""

import argparse
from pathlib import Path

from PIL import Image

from u1_core.cli.drawing import add_drawing_options, begin_drawing
from u1_core.cli.options import stream_text
from u1_core.cli.progress import ProgressLine
from u1_core.data.buckets import INTERLEAVE, Size, parse_size
from u1_core.data.pictures import smart_resize
from u1_core.model.config import U1Config
from u1_core.sample.euler import Step
from u1_core.sample.interleave import MAX_TOKENS, interleave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to tell")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures to start from")
    add_drawing_options(
        parser, "as the first picture, or 1536x1536 for U1", "let the model reason first, pictures included"
    )
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help=f"most text tokens (default {MAX_TOKENS})")


def run(args: argparse.Namespace) -> int:
    begun = begin_drawing(args, _size)
    drawing, tell, text = ProgressLine("drawing"), stream_text(args.json), ""

    def on_step(step: Step) -> None:
        if step.index == 0:
            tell("\n")  # the text's line ends here, before progress is shown over it
        drawing.steps(step.index + 1, step.steps)

    told = interleave(
        begun.session,
        args.prompt,
        begun.pictures,
        begun.settings,
        args.think,
        max_tokens=args.max_tokens,
        on_step=on_step,
    )
    for piece in told:
        if isinstance(piece, str):
            text += piece
            tell(piece)
        else:
            (path,) = begun.report.save(piece, args.out)
            text += f"\n[{path}]\n"
            tell(f"[{path}]\n")
    tell("\n")
    begun.report.finish(text=text)
    return 0


def _size(args: argparse.Namespace, config: U1Config, pictures: list[Image.Image]) -> Size:
    """What --size says, else the first input picture's size within limits, else a square of 9/16 the model's own."""
    side, native = config.token_pixels, config.native_pixels
    if pictures and not args.size:
        height, width = smart_resize(pictures[0].height, pictures[0].width, side, native // 16, native // 2)
        return width, height
    return parse_size(args.size or "1:1", side, INTERLEAVE, native * 9 // 16)
