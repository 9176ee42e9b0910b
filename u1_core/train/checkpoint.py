"""All that a run goes on from, in one .safetensors file that is there whole or not at all.

Weights, optimizer, EMA and guard, with the step (which is the data cursor and the schedule's place), the log's length,
and what recipe and data it belongs to. There is no state of random generators: what a step draws follows from the
seed, the step and the sample (see `rng`).
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.weights.header import read_header
from u1_core.weights.write import write_safetensors

STATE = "u1.state"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """A run after `step` steps."""

    step: int
    looked: bool
    """Whether the hooks due at this step have run."""
    log_bytes: int
    recipe: str
    """What matters of the recipe, as YAML."""
    data: str
    """Fingerprint of pictures and captions."""
    model: str
    guard: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]


def write_state(path: Path, state: State) -> None:
    """Write, in place of a file of that name if there is one. Raises U1Error if the disk will not take it."""
    tensors: dict[str, Tensor] = {}
    facts = {key: value for key, value in vars(state).items() if key not in ("weights", "ema", "optimizer")}
    for part in ("weights", "ema", "optimizer"):
        facts[part] = _pack(getattr(state, part), part, tensors)
    write_safetensors(path, tensors, {STATE: json.dumps({"format": FORMAT, **facts})}, overwrite=True)


def read_state(path: Path) -> State:
    """Read a file that `write_state` made. Raises U1Error if it is damaged or something else."""
    header = read_header(path)
    if header.size_problem or STATE not in header.metadata:
        raise U1Error(f"{path}: {header.size_problem or 'is no state of a run'}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # Copies: as long as a view of the file is somewhere, Windows lets nobody delete or replace it.
            tensors = {name: file.get_tensor(name).clone() for name in header.tensors}
        facts = json.loads(header.metadata[STATE])
    except (SafetensorError, OSError, ValueError) as problem:
        raise U1Error(f"{path}: cannot be read ({problem})") from None
    if facts.pop("format") != FORMAT:
        raise U1Error(f"{path}: was written by another version of this program, which is to go on with it")
    unpacked = {part: _unpack(facts.pop(part), tensors) for part in ("weights", "ema", "optimizer")}
    return State(**facts, **unpacked)


def state_files(folder: Path) -> list[Path]:
    """The states in a folder of checkpoints, the newest first."""
    return sorted(folder.glob("state_*.safetensors"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    digits = path.name.split(".")[0].rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def newest_state(folder: Path) -> State | None:
    """The newest state that is whole; None if there is none."""
    for path in state_files(folder):
        try:
            return read_state(path)
        except U1Error:
            continue
    return None


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Delete checkpoints (states and the weights beside them) but the last few and those of every so manieth step."""
    steps = [step_of(path) for path in state_files(folder)]
    # Weights alone are what a run left that was killed before it had written their state.
    alone = {step_of(path) for path in folder.glob("step_*.safetensors")} - set(steps)
    old = [*steps[keep_last:], *(step for step in alone if step < steps[0])] if steps else []
    for step in old:
        if not (keep_every and step % keep_every == 0):
            discard(folder, step)


def discard(folder: Path, step: int) -> None:
    """Delete all that there is of one step's checkpoint; what someone has open, on Windows, stays for the next time."""
    for name in (f"state_{step:06}", f"step_{step:06}", f"step_{step:06}.full"):
        with suppress(OSError):
            (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """As JSON, with tensors put aside under names; keys that are no texts and tuples survive."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(inner, f"{name}.{i}", tensors) for i, inner in enumerate(value)]}
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "items":
        return {key: _unpack(item, tensors) for key, item in inner}
    return tuple(_unpack(item, tensors) for item in inner) if kind == "tuple" else [_unpack(i, tensors) for i in inner]
