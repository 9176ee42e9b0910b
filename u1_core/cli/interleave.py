"""`u1 interleave`: text with pictures in between."""

import argparse
from pathlib import Path

from PIL import Image

from u1_core.cli.options import (
    Report,
    add_model_options,
    add_picture_options,
    check_out,
    open_pictures,
    open_session,
    picture_settings,
    stream_text,
)
from u1_core.cli.progress import ProgressLine
from u1_core.data.buckets import INTERLEAVE, parse_size
from u1_core.data.pictures import smart_resize
from u1_core.model.config import U1Config
from u1_core.sample.euler import Step
from u1_core.sample.interleave import MAX_TOKENS, interleave


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to tell")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures to start from")
    add_model_options(parser)
    add_picture_options(parser, default_size="as the first picture, or 1536x1536 for U1")
    parser.add_argument("--image-cfg", type=float, default=1.0, help="guidance scale of the pictures (default 1)")
    parser.add_argument("--think", action="store_true", help="let the model reason first, pictures included")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help=f"most text tokens (default {MAX_TOKENS})")


def run(args: argparse.Namespace) -> int:
    check_out(args.out)
    pictures = open_pictures(args.pictures)
    session = open_session(args)
    settings = picture_settings(args, _size(args, session.config, pictures))
    report = Report(args, session, settings)
    report.facts |= {"prompt": args.prompt, "pictures": list(map(str, args.pictures))}
    drawing, tell, text = ProgressLine("drawing"), stream_text(args.json), ""

    def on_step(step: Step) -> None:
        if step.index == 0:
            tell("\n")  # the text's line ends here, before progress is shown over it
        drawing.steps(step.index + 1, step.steps)

    told = interleave(session, args.prompt, pictures, settings, args.think, max_tokens=args.max_tokens, on_step=on_step)
    for piece in told:
        if isinstance(piece, str):
            text += piece
            tell(piece)
        else:
            (path,) = report.save(piece, args.out)
            text += f"\n[{path}]\n"
            tell(f"[{path}]\n")
    tell("\n")
    report.finish(text=text)
    return 0


def _size(args: argparse.Namespace, config: U1Config, pictures: list[Image.Image]) -> tuple[int, int]:
    """What --size says, else the first input picture's size within limits, else a square of 9/16 the model's own."""
    side, native = config.token_pixels, config.native_pixels
    if pictures and not args.size:
        height, width = smart_resize(pictures[0].height, pictures[0].width, side, native // 16, native // 2)
        return width, height
    return parse_size(args.size or "1:1", side, INTERLEAVE, native * 9 // 16)
