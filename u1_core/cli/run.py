"""`u1 run WORKFLOW.json`: run a workflow exported from ComfyUI in API form, without ComfyUI."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from u1_core.cli.progress import ProgressLine
from u1_core.errors import U1Error
from u1_core.workflow.graph import run_workflow
from u1_core.workflow.handles import Result
from u1_core.workflow.studio import Places, Studio, Watch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path, help="a workflow in API form, as ComfyUI's File, Export (API) writes it")
    parser.add_argument("--models", type=Path, action="append", default=[], help="folder with models; may be repeated")
    parser.add_argument("--loras", type=Path, default=Path("loras"), help="folder with LoRAs; new ones go into its u1/")
    parser.add_argument("--input", type=Path, default=Path("input"), help="where LoadImage and relative folders look")
    parser.add_argument("--out", type=Path, default=Path("output"), help="where pictures and runs go (default output)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", action="store_true", help="print what each node gave as JSON")


def run(args: argparse.Namespace) -> int:
    workflow = _read(args.workflow)
    models = args.models or [Path(os.environ.get("U1_MODELS", "models"))]
    cache = Path(tempfile.gettempdir()) / "u1_style_studio"
    studio = Studio(Places(tuple(models), (args.loras,), args.out, cache, args.input), args.device)
    drawing, working = ProgressLine("drawing"), ProgressLine("working")
    watch = Watch(
        on_step=lambda step: drawing.steps(step.index + 1, step.steps),
        on_progress=working.steps,
    )
    said = {}

    def on_node(number: str, kind: str, result: Result) -> None:
        said[number] = {"class": kind, "text": result.text}
        if result.text and not args.json:
            print(f"[{number} {kind}] {result.text}", flush=True)

    try:
        run_workflow(studio, workflow, watch, on_node)
    except KeyboardInterrupt:
        studio.runs.stop_all()
        raise
    if args.json:
        json.dump(said, sys.stdout, ensure_ascii=False, indent=1)
        print()
    return 0


def _read(path: Path) -> dict:
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise U1Error(f"{path}: there is no such workflow") from None
    except (OSError, ValueError) as problem:
        raise U1Error(f"{path}: is not JSON that can be read ({problem})") from None
    if not isinstance(workflow, dict) or "nodes" in workflow:
        exported = path.parent / "api" / path.name
        instead = f"take {exported}" if exported.is_file() else "export it with File, Export (API)"
        raise U1Error(f"{path}: is a workflow as the canvas has it; {instead}")
    return workflow
