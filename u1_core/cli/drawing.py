"""What the commands that draw from a prompt and pictures begin with: their options, a session, settings, a report."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from u1_core.cli.options import (
    Report,
    add_model_options,
    add_picture_options,
    check_out,
    open_pictures,
    open_session,
    picture_settings,
)
from u1_core.data.buckets import Size
from u1_core.model.config import U1Config
from u1_core.sample.settings import SampleSettings
from u1_core.session import Session


@dataclass(frozen=True)
class Drawing:
    """All that is needed to draw. What quick checks refuse is refused before it is made."""

    pictures: list[Image.Image]
    session: Session
    settings: SampleSettings
    report: Report


def add_drawing_options(parser: argparse.ArgumentParser, default_size: str, think: str) -> None:
    """The model and how it draws; `default_size` and `think` say in words what depends on the command."""
    add_model_options(parser)
    add_picture_options(parser, default_size)
    parser.add_argument("--image-cfg", type=float, default=1.0, help="guidance scale of the pictures (default 1)")
    parser.add_argument("--think", action="store_true", help=think)


def begin_drawing(
    args: argparse.Namespace, size: Callable[[argparse.Namespace, U1Config, list[Image.Image]], Size], batch: int = 1
) -> Drawing:
    """Check and open what the options name; `size` chooses the size. Raises U1Error."""
    check_out(args.out)
    pictures = open_pictures(args.pictures)
    session = open_session(args)
    settings = picture_settings(args, size(args, session.config, pictures), batch)
    report = Report(args, session, settings)
    report.facts |= {"prompt": args.prompt, "pictures": list(map(str, args.pictures))}
    return Drawing(pictures, session, settings, report)
