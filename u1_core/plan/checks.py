"""What there is to know of a machine before work begins on it, each thing in a line, and tried rather than assumed."""

import importlib
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from u1_core.kernels import attention, switch
from u1_core.model.config import GENERATION, U1Config
from u1_core.plan import eight_bit
from u1_core.plan.budget import free_bytes, gib
from u1_core.plan.gradient_test import gradient_test
from u1_core.plan.machine import bus_to, driver_version
from u1_core.released import released_config
from u1_core.weights.arena import Arena
from u1_core.weights.host_memory import host_memory_bytes, pin_limit_bytes
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config
from u1_core.weights.user_cache import cache_folder

PIN_PROBED_BYTES = 16 * 2**30
"""Page-locking is tried up to this much: more than any tower needs."""
MODEL = "U1-8B"
"""Whose layers the self-test has on a card."""
CPU_TOKENS = 64


@dataclass(frozen=True)
class Finding:
    """One line of the page. `sound` is False for what should be mended."""

    name: str
    text: str
    sound: bool = True


def look(device: torch.device, gradients: bool = True) -> Iterator[Finding]:
    """Everything, one after the other; the gradients last, as they take longest."""
    yield Finding("system", f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} threads")
    yield Finding("torch", _torch_words())
    if device.type == "cuda":
        for name, check in _CARD_CHECKS.items():
            yield _tried(name, check, device)
    else:
        yield Finding("card", "none that this PyTorch sees: everything runs on the CPU", sound=False)
    yield Finding("host memory", f"{gib(host_memory_bytes())}, of which {gib(pin_limit_bytes())} may be page-locked")
    yield from _optional_packages(device)
    yield from _disks()
    yield _comfyui()
    if gradients:
        yield _gradients(device)


def _tried(name: str, check: Callable[[torch.device], Finding], device: torch.device) -> Finding:
    try:
        return check(device)
    except torch.OutOfMemoryError:
        return Finding(name, "not tried: the card has no memory left for that", sound=False)


def _torch_words() -> str:
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__} {built}, {torch.get_num_threads()} threads"


def _card(device: torch.device) -> Finding:
    about = torch.cuda.get_device_properties(device)
    free = torch.cuda.mem_get_info(device)[0]
    words = f"{about.name}, {gib(about.total_memory)}, {gib(free)} free; budget auto is {gib(free_bytes(device))}"
    return Finding("card", words)


def _driver(device: torch.device) -> Finding:
    version = driver_version()
    words = f"knows CUDA {version // 1000}.{version % 1000 // 10}; the card is of compute capability "
    major, minor = torch.cuda.get_device_capability(device)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    words += f"{major}.{minor}" + ("" if bf16 else ", which has no bf16: everything will be slow")
    return Finding("driver", f"{words}; allocator {torch.cuda.get_allocator_backend()}", bf16)


def _copies(device: torch.device) -> Finding:
    bus = bus_to(device)
    words = f"{bus.pinned_rate / 1e9:.1f} GB/s from page-locked memory, {bus.pageable_rate / 1e9:.1f} from other"
    return Finding("copies", words)


def _pinning(device: torch.device) -> Finding:
    config = released_config(MODEL)
    arena = Arena(config, GENERATION, range(config.layers), torch.bfloat16, device)
    wanted = min(PIN_PROBED_BYTES, pin_limit_bytes() // 2)
    locked, refused = 0, False
    for index in arena.layers:
        if locked + arena.layer_bytes(index) > wanted:
            break
        if not arena.pin(index):
            refused = True
            break
        locked += arena.layer_bytes(index)
    arena.close()
    if refused:
        return Finding("page-locking", f"refused after {gib(locked)}; the rest is copied in stages, more slowly", False)
    return Finding("page-locking", f"{gib(locked)} tried, all of it granted")


def _kernels(device: torch.device) -> Finding:
    why_not = switch.why_not(device)
    return Finding("fast kernels", f"not used: {why_not}" if why_not else "Triton works", not why_not)


def _attention(device: torch.device) -> Finding:
    config = released_config(MODEL)
    words = []
    for backward in (False, True):
        found = attention.backends(
            device, torch.bfloat16, config.heads, config.kv_heads, config.head_dim, backward=backward
        )
        works = [(each.name.split("_")[0].lower(), seconds) for each, seconds in found if seconds < math.inf]
        timed = [f"{name} {seconds * 1e3:.2f} ms" for name, seconds in works]
        words.append(f"{'with backward' if backward else 'forward'}: {', '.join(timed) or 'plain products only'}")
    return Finding("attention", "; ".join(words))


_CARD_CHECKS: dict[str, Callable[[torch.device], Finding]] = {
    "card": _card,
    "driver": _driver,
    "copies": _copies,
    "page-locking": _pinning,
    "fast kernels": _kernels,
    "attention": _attention,
}


def _optional_packages(device: torch.device) -> Iterator[Finding]:
    yield _tried("8-bit AdamW", _eight_bit, device)
    for package, use in (("gguf", "quantised bases"), ("pyarrow", "parquet tables"), ("prodigyopt", "prodigy")):
        there = importlib.util.find_spec(package) is not None
        yield Finding(package, f"installed ({use})" if there else f"not installed; `pip install {package}` for {use}")


def _eight_bit(device: torch.device) -> Finding:
    """The 8-bit optimizer, tried with a step."""
    if device.type != "cuda":
        return Finding("8-bit AdamW", "not used without a card; AdamW takes its place")
    why_not = eight_bit.why_not(device)
    if why_not:
        return Finding("8-bit AdamW", f"not used, which takes more memory: {why_not}", sound=False)
    return Finding("8-bit AdamW", f"bitsandbytes {importlib.import_module('bitsandbytes').__version__} works")


def _disks() -> Iterator[Finding]:
    for name, folder in (("disk here", Path.cwd()), ("disk of caches", cache_folder())):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        yield Finding(name, f"{shutil.disk_usage(there).free / 1e9:.0f} GB free in {folder}")


def _comfyui() -> Finding:
    found = comfyui_folder()
    return Finding("ComfyUI", f"found at {found}" if found else "not found (COMFYUI_PATH may name its folder)")


def comfyui_folder() -> Path | None:
    """Where ComfyUI is: what COMFYUI_PATH names, the one that this pack lies in, or one in a usual place."""
    package = Path(__file__).resolve().parents[2]
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    places += [package.parent.parent, Path.cwd(), Path.cwd() / "ComfyUI", Path.home() / "ComfyUI"]
    return next((place for place in places if (place / "comfy").is_dir() and (place / "nodes.py").is_file()), None)


def _gradients(device: torch.device) -> Finding:
    if device.type == "cuda":
        config, dtype = released_config(MODEL), torch.bfloat16
    else:
        config = replace(U1Config.from_dict(tiny_config()), head_width=TINY_HEAD_WIDTH, native_tokens=CPU_TOKENS)
        dtype = torch.float32
    side = int(config.native_tokens**0.5) * config.token_pixels
    try:
        found = gradient_test(config, device, dtype, side)
    except torch.OutOfMemoryError:
        return Finding("gradients", "not tested: that takes some 8 GiB of the card, and there are fewer", False)
    small = "; a tiny model, as there is no card" if device.type == "cpu" else ""
    return Finding("gradients", f"{found}{small}", found.agrees)
