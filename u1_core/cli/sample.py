"""`u1 sample`: make pictures from a prompt."""

import argparse

from u1_core.cli.options import (
    Report,
    add_model_options,
    add_picture_options,
    check_out,
    open_session,
    picture_settings,
    stream_text,
)
from u1_core.cli.progress import ProgressLine
from u1_core.data.buckets import parse_size
from u1_core.sample.text_to_image import text_to_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw")
    add_model_options(parser)
    add_picture_options(parser, default_size="1:1 at the model's own size, 2048x2048 for U1")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once, from one seed (default 1)")
    parser.add_argument("--think", action="store_true", help="let the model reason in words first")


def run(args: argparse.Namespace) -> int:
    check_out(args.out)
    session = open_session(args)
    config = session.config
    size = parse_size(args.size or "1:1", config.token_pixels, pixels=config.native_pixels)
    settings = picture_settings(args, size, args.batch)
    settings.check(config)
    report = Report(args, session, settings)
    drawing = ProgressLine("drawing")
    drawn = text_to_image(
        session,
        args.prompt,
        settings,
        args.think,
        on_step=lambda step: drawing.steps(step.index + 1, step.steps),
        on_text=stream_text(args.json),
    )
    report.facts |= {"prompt": args.prompt, "think": drawn.think_text}
    report.save(drawn.pictures, args.out)
    report.finish()
    return 0
