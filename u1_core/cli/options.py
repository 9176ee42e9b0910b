"""Options that several commands share, and what they make: a session, settings, a report."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from u1_core import __version__
from u1_core.cli.progress import ProgressLine
from u1_core.data.pictures import open_picture, save_png, to_images
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import parse_lora_argument, read_lora
from u1_core.plan.budget import Budget, enforce
from u1_core.sample.guidance import NORMS
from u1_core.sample.settings import SampleSettings, settings_for
from u1_core.session import Session
from u1_core.weights.download import resolve_model

MODEL_HELP = "nano, a model folder, a .safetensors or .gguf file, or the id of a fetched model"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, where it runs, which LoRAs, and how the outcome is told."""
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, bf16 or fp32 (default: bf16 on a GPU, fp32 on a CPU)")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="use a LoRA; may be given several times"
    )
    parser.add_argument(
        "--fold", action="store_true", help="add the LoRAs to the weights themselves: longer to load, quicker steps"
    )
    add_budget_option(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def add_budget_option(parser: argparse.ArgumentParser) -> None:
    """How much of the card's memory may be taken."""
    parser.add_argument(
        "--budget",
        default="auto",
        help="memory of the card that may be taken: 12GiB, 12GB, full, balanced, low or auto (default: what is free, "
        "less some room for the desktop)",
    )


def add_picture_options(parser: argparse.ArgumentParser, default_size: str) -> None:
    """How pictures are drawn. `default_size` says in words what is drawn without --size."""
    parser.add_argument("--size", help=f"WIDTHxHEIGHT, or a ratio such as 16:9 or 1:1@1MP (default: {default_size})")
    parser.add_argument("--steps", type=int, default=50, help="steps (default 50; 8 with the 8-step LoRA)")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance scale (default 4; 1 with the 8-step LoRA)")
    parser.add_argument("--norm", default="none", help=f"guidance norm: {', '.join(NORMS)} (default none)")
    parser.add_argument(
        "--interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"), help="guide between these t only"
    )
    parser.add_argument("--shift", type=float, default=3.0, help="timestep shift (default 3)")
    parser.add_argument("--seed", type=int, default=42, help="seed (default 42)")
    parser.add_argument(
        "--out", type=Path, default=Path("u1.png"), help="PNG to write; never overwrites, numbers instead"
    )


def open_session(args: argparse.Namespace) -> Session:
    """The session that the options ask for, its LoRAs in use. Raises U1Error."""
    reading = ProgressLine("reading weights")
    budget = Budget.parse(args.budget)
    session = Session.open(resolve_model(args.model), args.device, args.dtype, reading.bytes, budget=budget)
    enforce(budget, session.device)
    adapters = load_adapters(args.lora)
    if args.fold:
        session.fold(adapters)
    else:
        session.use(adapters)
    return session


def load_adapters(arguments: Sequence[str]) -> list[Adapter]:
    """LoRAs from "FILE[:STRENGTH]" arguments. What a reader should know of a file is said on standard error."""
    adapters = []
    for argument in arguments:
        path, strength = parse_lora_argument(argument)
        file = read_lora(path)
        for note in file.notes:
            print(f"{path}: {note}", file=sys.stderr)
        file.adapter.strength = strength
        adapters.append(file.adapter)
    return adapters


def picture_settings(args: argparse.Namespace, size: tuple[int, int], batch: int = 1) -> SampleSettings:
    """The settings that the options ask for, at `size` (width, height)."""
    image_cfg, interval = getattr(args, "image_cfg", 1.0), tuple(args.interval)
    return settings_for(size, args.steps, args.cfg, image_cfg, args.norm, interval, args.shift, args.seed, batch)


def open_pictures(paths: list[Path]) -> list[Any]:
    """Input pictures, upright and in RGB. Raises U1Error naming the file that cannot be read."""
    return [open_picture(path) for path in paths]


class Report:
    """What a command did: kept in each PNG's metadata and printed at the end."""

    def __init__(self, args: argparse.Namespace, session: Session, settings: SampleSettings | None = None) -> None:
        self._json, self._session, self._started = args.json, session, time.monotonic()
        self.facts: dict[str, Any] = {
            "command": args.command,
            "u1_style_studio": __version__,
            "model": {"path": str(session.snapshot.path), "kind": session.config.kind},
            "device": str(session.device),
            "dtype": str(session.dtype).removeprefix("torch."),
            "loras": list(args.lora),
            "folded": bool(session.folded),
        }
        if settings:
            self.facts["settings"] = asdict(settings)

    def save(self, pictures: Tensor, out: Path) -> list[str]:
        """Write pictures (B, 3, H, W) as PNGs that carry the facts so far. Returns the paths."""
        paths = [str(save_png(image, out, self.facts)) for image in to_images(pictures.cpu())]
        self.facts.setdefault("files", []).extend(paths)
        return paths

    def finish(self, **facts: Any) -> None:
        """Print the report: JSON if asked for, else the files that were written."""
        self.facts |= facts | {"seconds": round(time.monotonic() - self._started, 3)}
        if self._json:
            print(json.dumps(self.facts, ensure_ascii=False, indent=1))
        else:
            for path in self.facts.get("files", ()):
                print(path)


def stream_text(json_wanted: bool):
    """Where text goes as it is said: to the terminal, or nowhere if the report is JSON."""

    def tell(text: str) -> None:
        if not json_wanted:
            print(text, end="", flush=True)

    return tell


def check_out(path: Path) -> None:
    """Raise U1Error now if a picture could not be written to `path` later."""
    if path.suffix.lower() != ".png":
        raise U1Error(f"--out {path}: pictures are written as PNG, so that they can carry their settings; use .png")
    if not path.parent.is_dir():
        raise U1Error(f"--out {path}: there is no folder {path.parent}")
