"""`u1 lora inspect | plan | merge | export`: what a LoRA file is, what a spec would train, LoRAs written into a model,
and LoRAs written anew."""

import argparse
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from u1_core.cli.lora_export import add_export, export
from u1_core.cli.options import MODEL_HELP
from u1_core.cli.progress import ProgressLine
from u1_core.errors import U1Error, nearest
from u1_core.lora.files import parse_lora_argument, read_lora
from u1_core.lora.inspect import Inspection, inspect_lora
from u1_core.lora.kinds import KIND_NAMES
from u1_core.lora.merge import merge_loras
from u1_core.lora.plan import LoraPlan, plan_lora, select_unfrozen
from u1_core.lora.spec import PRESETS
from u1_core.model.config import U1Config, tensor_shapes
from u1_core.released import RELEASED, released_config
from u1_core.weights.download import resolve_model
from u1_core.weights.snapshot import Snapshot

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = actions.add_parser("inspect", help="for which model a file is, what it covers, where it would load")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")
    _add_plan(actions.add_parser("plan", help="modules, parameters and bytes of a spec, from the config alone"))
    _add_merge(actions.add_parser("merge", help="write a model with LoRAs added to its weights"))
    add_export(actions.add_parser("export", help="write a LoRA anew, the tensors trained whole folded into it"))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help=f"config.json, model folder, fetched model's id, or one of {', '.join(RELEASED)}"
    )
    parser.add_argument("--spec", help="e.g. 'attn=r64a64;mlp=r64;mlp_mot_gen.down_proj=off'")
    parser.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument(
        "--unfreeze",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGEX",
        help="tensors that are trained whole beside the LoRA",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, every module listed")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument(
        "--lora", action="append", required=True, metavar="FILE[:STRENGTH]", help="a LoRA; may be given several times"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--dtype", help=f"of all weights: {', '.join(DTYPES)} (default: each as it is)")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file, e.g. 4GB (default 5GB)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    {"inspect": _inspect, "plan": _plan, "merge": _merge, "export": export}[args.action](args)
    return 0


def _inspect(args: argparse.Namespace) -> None:
    found = inspect_lora(args.file)
    if args.json:
        _print_json(found.as_json())
    else:
        print("\n".join(_inspection_lines(found)))


def _inspection_lines(found: Inspection) -> list[str]:
    undecided = ": the file does not say which" if len(found.kinds) > 1 else ""
    lines = [f"{found.path}, {found.file_bytes:,} bytes", f"  for {found.for_model}{undecided} ({found.reason})"]
    if found.modules:
        ranks, alphas, scales = (_listed(values) for values in (found.ranks, found.alphas, found.scales))
        lines.append(f"  {found.modules} modules, {found.parameters:,} parameters, {' and '.join(found.dtypes)}")
        lines.append(f"  rank {ranks}, alpha {alphas}, scale (alpha / rank) {scales}")
        lines.append(f"  names: {found.prefix or 'no prefix'}, {found.naming}")
    if found.full_tensors:
        lines.append(f"  {len(found.full_tensors)} tensors trained whole, {found.full_parameters:,} parameters:")
        lines += [f"    {name}" for name in found.full_tensors]
    if found.covers:
        lines.append("  covers")
        lines += [
            f"    {cover.target:<40}{cover.modules:>6}" + (f"  layers {cover.layers}" if cover.layers else "")
            for cover in found.covers
        ]
    lines.append("  loads in")
    for load in found.loads:
        lines.append(
            f"    {load.where:<26}{'yes' if load.loads else 'no'}" + (f": {load.reason}" if load.reason else "")
        )
    lines += [f"  note: {note}" for note in found.notes]
    return lines + [f"  metadata {key}: {_shortened(value)}" for key, value in found.metadata.items()]


def _shortened(value: str) -> str:
    """A value of the metadata; of an embedded picture only how large it is."""
    return f"{value.partition(',')[0]}, {len(value):,} characters" if value.startswith("data:") else value


def _plan(args: argparse.Namespace) -> None:
    if bool(args.spec) == bool(args.preset):
        raise U1Error("give either --spec or --preset")
    if args.preset and args.preset not in PRESETS:
        raise U1Error(f"--preset {args.preset}: there is no such preset{nearest(args.preset, PRESETS)}")
    config = _config_of(args.model)
    plan = plan_lora(config, args.spec or args.preset)
    shapes = tensor_shapes(config)
    unfrozen = {name: math.prod(shapes[name]) for name in select_unfrozen(config, args.unfreeze)}
    if args.json:
        _print_json(_plan_facts(plan, unfrozen))
    else:
        print("\n".join(_plan_lines(plan, unfrozen)))


def _plan_facts(plan: LoraPlan, unfrozen: dict[str, int]) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "modules": len(plan.modules),
        "parameters": plan.parameters,
        "bytes_fp32": plan.n_bytes(torch.float32),
        "bytes_bf16": plan.n_bytes(torch.bfloat16),
        "unfrozen_tensors": len(unfrozen),
        "unfrozen_parameters": sum(unfrozen.values()),
        "trainable_parameters": plan.parameters + sum(unfrozen.values()),
        "absent": list(plan.absent),
        "targets": {
            target: {"modules": modules, "parameters": parameters}
            for target, (modules, parameters) in plan.by_target().items()
        },
        "module_list": [asdict(module) | {"parameters": module.parameters} for module in plan.modules],
        "unfrozen": unfrozen,
    }


def _plan_lines(plan: LoraPlan, unfrozen: dict[str, int]) -> list[str]:
    lines = [f"{'target':<40}{'modules':>9}{'parameters':>15}"]
    for target, (modules, parameters) in plan.by_target().items():
        lines.append(f"{target:<40}{modules:>9,}{parameters:>15,}")
    lines.append(f"{'LoRA':<40}{len(plan.modules):>9,}{plan.parameters:>15,}")
    for name, parameters in unfrozen.items():
        lines.append(f"{name:<49}{parameters:>15,}")
    if unfrozen:
        lines.append(f"{'trained whole':<49}{sum(unfrozen.values()):>15,}")
        lines.append(f"{'trainable in all':<49}{plan.parameters + sum(unfrozen.values()):>15,}")
    fp32, bf16 = plan.n_bytes(torch.float32), plan.n_bytes(torch.bfloat16)
    lines.append(f"the LoRA takes {fp32:,} bytes in fp32, {bf16:,} in bf16")
    if plan.absent:
        lines.append(f"left out, as {KIND_NAMES[plan.kind]} models do not have them: {', '.join(plan.absent)}")
    return lines


def _config_of(model: str) -> U1Config:
    """From a published model's name, a config.json, a folder with one, or a .safetensors file beside one."""
    if model in RELEASED:
        return released_config(model)
    path = resolve_model(model)
    if path.suffix.lower() == ".json":
        return U1Config.from_file(path)
    return U1Config.from_file((path if path.is_dir() else path.parent) / "config.json")


def _merge(args: argparse.Namespace) -> None:
    if args.dtype is not None and args.dtype not in DTYPES:
        raise U1Error(f"--dtype {args.dtype} is none of {', '.join(DTYPES)}")
    shard_bytes = parse_bytes(args.shard_size)
    snapshot = Snapshot.open(resolve_model(args.model))
    adapters, notes = [], []
    for argument in args.lora:
        path, strength = parse_lora_argument(argument)
        file = read_lora(path)
        file.adapter.strength = strength
        adapters.append(file.adapter)
        notes += [f"{path}: {note}" for note in file.notes]
    writing = ProgressLine("merging")
    changed = merge_loras(snapshot, adapters, args.out, DTYPES.get(args.dtype), shard_bytes, writing.bytes)
    total = len(snapshot.tensors)
    if args.json:
        loras = [{"file": adapter.name, "strength": adapter.strength} for adapter in adapters]
        _print_json({"out": str(args.out), "tensors": total, "changed": changed, "loras": loras, "notes": notes})
    else:
        print("\n".join([f"{args.out}: {changed} of {total} tensors changed", *notes]))


def parse_bytes(text: str) -> int:
    """ "4GB" -> 4,000,000,000; "500 MB"; "1000000"."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text.upper())
    value = int(float(found[1]) * _UNITS.get(found[2], _UNITS.get(f"{found[2]}B", 1))) if found else 0
    if value <= 0:
        raise U1Error(f"--shard-size {text!r}: expected a size such as 4GB or 500MB")
    return value


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, ensure_ascii=False, indent=1))
