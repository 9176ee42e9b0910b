"""`u1 report RUN`: a run's report.html, built anew from the files in its folder."""

import argparse
from pathlib import Path

from u1_core.train.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/my_run")


def run(args: argparse.Namespace) -> int:
    print(write_report(args.run))
    return 0
