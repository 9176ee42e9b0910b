"""`u1 edit`: change one to ten pictures as a prompt says."""

import argparse
from pathlib import Path

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
from u1_core.data.buckets import edit_size, parse_size
from u1_core.sample.edit import edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to change")
    parser.add_argument("pictures", type=Path, nargs="+", help="one to ten pictures")
    add_model_options(parser)
    add_picture_options(parser, default_size="the first picture's ratio at the model's own size")
    parser.add_argument("--image-cfg", type=float, default=1.0, help="guidance scale of the pictures (default 1)")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once, from one seed (default 1)")
    parser.add_argument("--think", action="store_true", help="let the model reason in words first")


def run(args: argparse.Namespace) -> int:
    check_out(args.out)
    pictures = open_pictures(args.pictures)
    session = open_session(args)
    side, pixels = session.config.token_pixels, session.config.native_pixels
    size = parse_size(args.size, side, pixels=pixels) if args.size else edit_size(*pictures[0].size, side, pixels)
    settings = picture_settings(args, size, args.batch)
    report = Report(args, session, settings)
    drawing = ProgressLine("drawing")
    drawn = edit(
        session,
        args.prompt,
        pictures,
        settings,
        args.think,
        on_step=lambda step: drawing.steps(step.index + 1, step.steps),
        on_text=stream_text(args.json),
    )
    report.facts |= {"prompt": args.prompt, "pictures": list(map(str, args.pictures)), "think": drawn.think_text}
    report.save(drawn.pictures, args.out)
    report.finish()
    return 0
