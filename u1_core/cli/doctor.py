"""`u1 doctor`: this machine in one page, and whether training computes on it what it should."""

import argparse
import json
from dataclasses import asdict

from u1_core.plan.checks import look
from u1_core.session import choose_device

UNSOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--quick", action="store_true", help="leave out the gradients' self-test")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if gradients are not what they should be."""
    device = choose_device(args.device)
    findings = []
    for finding in look(device, gradients=not args.quick):
        findings.append(finding)
        if not args.json:
            mark = " " if finding.sound else "!"
            print(f"{mark} {finding.name:<15}{finding.text}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1))
    failed = any(finding.name == "gradients" and not finding.sound for finding in findings)
    return UNSOUND if failed else 0
