"""What this machine can do, measured once: how fast it copies to its card, and what the parts of a step take there.

Figures are kept in the user's cache folder, under all that they depend on: card, driver, PyTorch, the code of the
layers, and the work itself. Whatever changes is measured again.
"""

import ctypes
import hashlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import layer_place
from u1_core.model.stack import Keep
from u1_core.plan.costs import Bus, Costs, EndsCost, LayerCost, UpdateCost
from u1_core.plan.measure import measure
from u1_core.plan.step_model import StepModel
from u1_core.plan.work import TrainingWork, Work
from u1_core.weights.host_memory import host_memory_bytes, pin_limit_bytes
from u1_core.weights.user_cache import cache_folder
from u1_core.weights.write import replacing

COPIED_BYTES = 256 * 2**20
COPIES = 5
ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
PREFIX_STEP = 64
"""Prefixes are measured as so many tokens longer, at most: a new prompt is no new work."""


def costs_on(device: torch.device, work: Work) -> Costs:
    """What the parts of this work take here: as measured before, or measured now."""
    work = replace(work, prefix_tokens=-(-work.prefix_tokens // PREFIX_STEP) * PREFIX_STEP)
    found = _remembered(f"{machine_key(device)} {_work_key(work)}", lambda: _as_json(measure(work, device)))
    return _from_json(found)


def bus_to(device: torch.device) -> Bus:
    """How fast host memory is copied to the card."""
    pinned, pageable = _remembered(f"{machine_key(device)} copies", lambda: _measure_copies(device))
    return Bus(pinned, pageable, pin_limit_bytes())


def host_free_bytes() -> int:
    """What layers may take of the host's memory; the rest is the system's, and the page cache's."""
    return host_memory_bytes() * 3 // 4


def model_here(device: torch.device, work: Work, other_bytes: int = 0) -> StepModel:
    """What this work takes on this card, for any plan; see `StepModel.of`."""
    return StepModel.of(work, costs_on(device, work), bus_to(device), host_free_bytes(), other_bytes)


def driver_version() -> int:
    """The newest CUDA that the card's driver knows, as the driver says it (13000 for 13.0); 0 where there is none."""
    version = ctypes.c_int(0)
    with suppress(OSError):
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


@cache
def machine_key(device: torch.device) -> str:
    """All that a figure of this card depends on, but for the work."""
    about = torch.cuda.get_device_properties(device)
    allocator = [torch.cuda.get_allocator_backend(), *(os.environ.get(name, "") for name in ALLOCATOR_VARIABLES)]
    words = [about.name, about.total_memory, f"CUDA {driver_version()}", f"torch {torch.__version__}", *allocator]
    return ", ".join(map(str, [*words, _code_digest()]))


def _measure_copies(device: torch.device) -> list[float]:
    pageable = torch.ones(COPIED_BYTES, dtype=torch.uint8)
    return [_copy_rate(pageable.pin_memory(), device), _copy_rate(pageable, device)]


def _copy_rate(host: Tensor, device: torch.device) -> float:
    target, seconds = torch.empty_like(host, device=device), []
    for _ in range(1 + COPIES):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(host, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return host.nbytes / statistics.median(seconds[1:])


@cache
def _code_digest() -> str:
    """Of the code that is measured, and measures: another version of it has other costs."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.blake2b(digest_size=8)
    for pattern in ("model/*.py", "kernels/*.py", "plan/measure.py", "train/optimizers.py"):
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _work_key(work: Work) -> str:
    """All of a work that its parts' costs depend on."""
    modules = [(m.path, m.rank) for m in work.modules if layer_place(m.path)[0] in (None, 0)]
    words = [replace(work.config, layers=1), work.dtype, work.width, work.height, work.batch, work.branches]
    words += [work.prefix_tokens, modules, work.whole, work.dropout]
    if isinstance(work, TrainingWork):
        words += [work.optimizer, work.trained]
    return hashlib.blake2b(repr(words).encode(), digest_size=16).hexdigest()


def _remembered(key: str, find: Callable[[], Any]) -> Any:
    """What is kept under `key`, or what `find` finds, which is kept then."""
    path = cache_folder() / "measured.json"
    kept = _read(path)
    if key not in kept:
        kept[key] = find()
        try:
            with replacing(path, overwrite=True) as file:
                file.write(json.dumps(kept, indent=1).encode())
        except U1Error as problem:
            logging.getLogger(__name__).warning("measured figures are not kept: %s", problem)
    return kept[key]


def _read(path: Path) -> dict[str, Any]:
    """Nothing, if the file is not there or not whole: it is only a cache."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _as_json(costs: Costs) -> dict[str, Any]:
    return {**asdict(costs), "layer": {keep.value: asdict(cost) for keep, cost in costs.layer.items()}}


def _from_json(found: dict[str, Any]) -> Costs:
    layer = {Keep(name): LayerCost(**cost) for name, cost in found["layer"].items()}
    return Costs(layer, EndsCost(**found["ends"]), UpdateCost(**found["update"]), found["slack_bytes"])
