"""`u1 compare`: one labelled sheet of the same prompts and seed over LoRAs and numbers of steps."""

import argparse
from pathlib import Path

from u1_core.cli.options import MODEL_HELP, Report, check_out
from u1_core.cli.progress import ProgressLine
from u1_core.data.buckets import parse_size
from u1_core.data.pictures import save_png
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import parse_lora_argument, read_lora
from u1_core.sample.compare import FEW_STEPS, Look, columns_for, draw_blocks, sheet
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.session import Session
from u1_core.weights.download import resolve_model

ONE_MEGAPIXEL = 2**20
"""Of a cell: a sheet has many."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, bf16 or fp32 (default: bf16 on a GPU, fp32 on a CPU)")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="a row of the sheet; may be given again"
    )
    parser.add_argument("--prompt", action="append", required=True, help="what to draw; may be given several times")
    parser.add_argument("--steps", default="50", metavar="N,N…", help="a column each, e.g. 8,50 (default 50)")
    parser.add_argument(
        "--upstream",
        metavar="FILE[:STRENGTH]",
        help=f"a few-step LoRA, in effect with guidance scale 1 in columns of up to {FEW_STEPS} steps",
    )
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance scale of the other columns (default 4)")
    parser.add_argument(
        "--size",
        default="1:1",
        help="WIDTHxHEIGHT, or a ratio such as 3:2 or 3:2@1MP (default 1:1, at the model's own pixels or 1 MP, "
        "whichever is less)",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of every picture (default 42)")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), help="PNG to write; numbered if it is there")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Raises U1Error for every mistake before the first picture is drawn."""
    check_out(args.out)
    steps = parse_steps(args.steps)
    session = Session.open(resolve_model(args.model), args.device, args.dtype, ProgressLine("reading weights").bytes)
    config = session.config
    size = parse_size(args.size, config.token_pixels, pixels=min(config.native_pixels, ONE_MEGAPIXEL))
    settings = SampleSettings(*size, seed=args.seed, guidance=Guidance(args.cfg))
    settings.check(config)
    upstream = _adapter(session, args.upstream) if args.upstream else None
    looks = [Look("without a LoRA"), *(Look(text, (_adapter(session, text),)) for text in args.lora)]
    columns = columns_for(settings, steps, upstream)
    report = Report(args, session, settings)
    report.facts |= {"prompts": args.prompt, "steps": steps, "upstream": args.upstream}
    blocks = draw_blocks(session, args.prompt, looks, columns, ProgressLine("drawing").steps)
    labels = [Path(look.label).name if look.adapters else look.label for look in looks]
    image = sheet(blocks, labels, [column.label for column in columns])
    report.facts["files"] = [str(save_png(image, args.out, report.facts))]
    report.finish()
    return 0


def parse_steps(text: str) -> list[int]:
    """ "8,50" -> [8, 50]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise U1Error(f"--steps {text!r}: expected numbers of steps with commas between, such as 8,50")
    return [int(part) for part in parts]


def _adapter(session: Session, argument: str) -> Adapter:
    path, strength = parse_lora_argument(argument)
    adapter = read_lora(path).adapter
    adapter.strength = strength
    adapter.check(session.config)
    return adapter
