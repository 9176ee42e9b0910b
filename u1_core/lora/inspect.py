"""What a LoRA file is: for which model, what it covers, how strong it is, and where it would load."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, layer_place, tower_of
from u1_core.lora.files import LoraFile, read_lora
from u1_core.lora.kinds import kinds_in_words
from u1_core.lora.plan import target_of
from u1_core.model.config import UNDERSTANDING


@dataclass(frozen=True)
class Coverage:
    """Modules of the same name in several layers; experts are taken together."""

    target: str
    modules: int
    layers: str
    """ "0-41", "3,5-7", or nothing for a module outside the layers."""


@dataclass(frozen=True)
class Loading:
    """Whether a program takes the file, and why not or what is lost."""

    where: str
    loads: bool
    reason: str = ""


@dataclass(frozen=True)
class Inspection:
    """What `u1 lora inspect` tells. Sizes in bytes are of the file alone."""

    path: str
    file_bytes: int
    kinds: tuple[str, ...]
    for_model: str
    reason: str
    modules: int
    parameters: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    dtypes: tuple[str, ...]
    prefix: str
    naming: str
    covers: tuple[Coverage, ...]
    full_tensors: tuple[str, ...]
    full_parameters: int
    loads: tuple[Loading, ...]
    notes: tuple[str, ...]
    metadata: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_lora(path: Path) -> Inspection:
    """Read a LoRA file and tell what it is. Raises U1Error for what `read_lora` refuses."""
    file = read_lora(path)
    adapter = file.adapter
    modules = adapter.modules.values()
    return Inspection(
        path=str(file.path),
        file_bytes=file.path.stat().st_size,
        kinds=tuple(sorted(adapter.kinds)),
        for_model=kinds_in_words(adapter.kinds),
        reason=adapter.kind_reason,
        modules=len(modules),
        parameters=sum(tensor.numel() for tensor in adapter.parameters()),
        ranks=tuple(sorted({module.rank for module in modules})),
        alphas=tuple(sorted({module.alpha for module in modules})),
        scales=tuple(sorted({module.scale for module in modules})),
        dtypes=file.dtypes,
        prefix=file.prefix,
        naming=file.naming,
        covers=tuple(_coverage(adapter.modules)),
        full_tensors=tuple(adapter.full),
        full_parameters=sum(tensor.numel() for tensor in adapter.full.values()),
        loads=(_in_official_scripts(file), _in_stock_comfyui(file), _in_this_pack(adapter)),
        notes=file.notes,
        metadata=dict(file.metadata),
    )


def _coverage(paths: Iterable[str]) -> Iterable[Coverage]:
    layers: dict[str, set[int]] = {}
    counts: Counter[str] = Counter()
    for path in paths:
        layer, local = layer_place(path)
        name = target_of(path) or (local if layer is not None else path)
        if layer is not None and tower_of(path) == UNDERSTANDING:
            name += " (understanding tower)"
        name = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        counts[name] += 1
        layers.setdefault(name, set()).update([] if layer is None else [layer])
    for name, count in counts.items():
        yield Coverage(name, count, _runs(sorted(layers[name])))


def _runs(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _in_official_scripts(file: LoraFile) -> Loading:
    """The official merge takes lora_down/lora_up with an alpha each, bare or with `diffusion_model.` before them."""
    where = "official scripts"
    if not file.adapter.modules:
        return Loading(where, False, "they ignore fully trained tensors, and there is nothing else in it")
    terms = [name for name in file.tensor_names if ".lora" in name]
    if not all(name.endswith((".lora_down.weight", ".lora_up.weight")) for name in terms):
        return Loading(where, False, "they take only names in lora_down.weight and lora_up.weight")
    if file.prefix not in ("", "diffusion_model."):
        return Loading(where, False, f"they do not know the prefix {file.prefix}")
    if not file.has_alpha:
        return Loading(where, False, "they need an alpha for each module")
    if convolutions := [path for path, module in file.adapter.modules.items() if module.kernel]:
        return Loading(where, False, f"they fail on terms of convolutions, such as {convolutions[0]}")
    limits = []
    if file.dtypes != ("F32",):
        limits.append(f"the oldest of them want F32, not {' and '.join(file.dtypes)}")
    if file.adapter.full:
        limits.append("without the fully trained tensors")
    return Loading(where, True, "; ".join(limits))


def _in_stock_comfyui(file: LoraFile) -> Loading:
    """Stock ComfyUI's LoraLoader maps `diffusion_model.<path>` and `lora_unet_<path>`, and knows U1.5 only."""
    where = "stock ComfyUI LoraLoader"
    if not file.adapter.modules:
        return Loading(where, False, "it ignores fully trained tensors, and there is nothing else in it")
    if file.prefix not in ("diffusion_model.", "lora_unet_"):
        found = f"this file has {file.prefix}" if file.prefix else "this file's keys are bare"
        return Loading(where, False, f"it takes only keys that begin with diffusion_model. or lora_unet_; {found}")
    if "u1.5" not in file.adapter.kinds:
        return Loading(where, False, "the keys are right, but ComfyUI by itself has only U1.5")
    limits = ["if it is for U1.5, the only kind that ComfyUI has by itself"] if len(file.adapter.kinds) > 1 else []
    limits += ["without the fully trained tensors"] if file.adapter.full else []
    return Loading(where, True, "; ".join(limits))


def _in_this_pack(adapter: Adapter) -> Loading:
    try:
        adapter.check_live()
    except U1Error:
        return Loading("U1 Style Studio", False, "only merged into a model, with `u1 lora merge`")
    return Loading("U1 Style Studio", True)
