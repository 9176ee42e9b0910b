"""`u1 parity`: compare with what the official code computed."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from u1_core.parity import Verdict, run_parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="folders with a model, a manifest.json and its cases")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def run(args: argparse.Namespace) -> int:
    verdicts = {}
    for folder in args.folders:
        if not args.json:
            print(f"{folder}\n  {'case':<26}{'error':>10}{'allowed':>10}  verdict")
        verdicts[str(folder)] = run_parity(folder, (lambda verdict: None) if args.json else _print, args.device)
    if args.json:
        print(json.dumps({folder: [_row(v) for v in rows] for folder, rows in verdicts.items()}, indent=1))
    passed = all(verdict.passed for rows in verdicts.values() for verdict in rows)
    return 0 if passed else 1


def _print(verdict: Verdict) -> None:
    outcome = "passed" if verdict.passed else f"FAILED at {verdict.at}"
    outcome += f" ({verdict.note})" if verdict.note else ""
    print(f"  {verdict.case:<26}{verdict.error:>10.1e}{verdict.tolerance:>10.0e}  {outcome}", flush=True)


def _row(verdict: Verdict) -> dict[str, object]:
    # JSON has no infinity: a wrong token or text is an error of null.
    error = verdict.error if math.isfinite(verdict.error) else None
    return asdict(verdict) | {"error": error, "passed": verdict.passed}
