"""LoRA files: every form in use is read, and one form that loads everywhere is written."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.lora.keys import LoraKey, other_method, parse_key
from u1_core.lora.kinds import BASE_KIND, possible_kinds
from u1_core.lora.peft import find_peft_settings
from u1_core.weights.header import DTYPE_NAMES, Header, read_header
from u1_core.weights.snapshot import PICKLES
from u1_core.weights.write import write_safetensors

FULL_FILE = "u1.full_tensors"
"""Metadata key: the name of the file, in the same folder, with the tensors that the same run trained whole."""

PREFIX = "diffusion_model."
"""The only prefix that stock ComfyUI takes; the official loaders take it too."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file as it was read: the adapter, and what the file looked like."""

    path: Path
    adapter: Adapter
    metadata: Mapping[str, str]
    prefix: str
    """Before every key: "diffusion_model.", "base_model.model.", "lora_unet_", … or nothing."""
    naming: str
    """As of its keys (`LoraKey.naming`), or nothing if it holds only full tensors."""
    dtypes: tuple[str, ...]
    """Of the low-rank tensors."""
    has_alpha: bool
    """Whether every module has its alpha in the file."""
    tensor_names: tuple[str, ...]
    """As they stand in the file."""
    full_file: Path | None = None
    """The file beside it that brought the full tensors."""
    notes: tuple[str, ...] = field(default=())
    """What had to be assumed, in words."""


def read_lora(path: Path | str) -> LoraFile:
    """Read a .safetensors LoRA of any known form; if its metadata names a file of full tensors, that one too.

    Tensors stay in the file's dtype, on the CPU. Raises U1Error for pickles, damaged or truncated files, keys of no
    known form, terms of which a half is missing, ranks that disagree, and numbers that are not finite.
    """
    path = Path(path).expanduser()
    header = _open_header(path)
    keys = _parse_keys(header)
    tensors = _read_tensors(header)
    modules, has_alpha, notes = _modules(path, header.metadata, keys, tensors)
    full = {key.name: tensors[name] for name, key in keys.items() if key.part == "full"}
    _refuse_checkpoint(path, modules, full)
    full_file = _full_file(path, header.metadata)
    if full_file and full_file.is_file():
        full |= _read_full(full_file)
        notes.append(f"its {len(full)} tensors trained whole are in {full_file.name}")
    elif full_file:
        notes.append(f"{full_file.name} is not beside it: the tensors that were trained whole are missing")
    try:
        ranks_and_alphas = [(module.rank, module.alpha) for module in modules.values()]
        kinds, reason = possible_kinds([*modules, *full], ranks_and_alphas, header.metadata)
    except U1Error as problem:
        raise U1Error(f"{path}: {problem}") from None
    source = (full_file or path).resolve() if full else None
    adapter = Adapter(modules, full, kinds=kinds, kind_reason=reason, name=path.name, full_source=source)
    terms = [entry for name, entry in header.tensors.items() if keys[name].part in ("down", "up")]
    return LoraFile(
        path=path,
        adapter=adapter,
        metadata=header.metadata,
        prefix=next(iter(keys.values())).prefix,
        naming=next((key.naming for key in keys.values() if key.naming), ""),
        dtypes=tuple(sorted({DTYPE_NAMES[entry.dtype] for entry in terms})),
        has_alpha=has_alpha,
        tensor_names=tuple(header.tensors),
        full_file=full_file if full_file and full_file.is_file() else None,
        notes=tuple(notes),
    )


def write_lora(
    path: Path, adapter: Adapter, metadata: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Write the low-rank terms: fp32, `diffusion_model.` on every key, an fp32 `alpha` for each module; atomically.

    A convolution's down is (rank, channels, height, width) and its up (out, rank, 1, 1), as stock ComfyUI takes them.

    Full tensors go elsewhere (`write_full`): loaders of other programs do not know them. `metadata` comes on top of
    what is always said: kind of model, number of modules, ranks and alphas. The adapter's kind must be known.
    """
    tensors = {}
    for module_path, module in adapter.modules.items():
        key = PREFIX + module_path
        down, up = (side.detach().to("cpu", torch.float32) for side in (module.down, module.up))
        if module.kernel:
            down, up = down.unflatten(1, (-1, *module.kernel)), up[:, :, None, None]
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
        tensors[f"{key}.alpha"] = torch.tensor(module.alpha, dtype=torch.float32)
    (kind,) = adapter.kinds
    ranks = sorted({module.rank for module in adapter.modules.values()})
    alphas = sorted({module.alpha for module in adapter.modules.values()})
    always = _metadata(path, kind, "lora") | {
        "modules": str(len(adapter.modules)),
        "rank": ", ".join(map(str, ranks)),
        "alpha": ", ".join(f"{alpha:g}" for alpha in alphas),
        # kohya's names for the same; "Dynamic" is its word for several.
        "ss_network_dim": str(ranks[0]) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas[0]:g}" if len(alphas) == 1 else "Dynamic",
    }
    write_safetensors(path, tensors, {**(metadata or {}), **always}, overwrite)


def write_full(
    path: Path,
    tensors: Mapping[str, Tensor],
    kind: str,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors that were trained whole, by their checkpoint names and in their dtype; atomically.

    Name this file under `FULL_FILE` in the LoRA's metadata, and `read_lora` brings it along.
    """
    stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    write_safetensors(path, stored, {**(metadata or {}), **_metadata(path, kind, "full tensors")}, overwrite)


def parse_lora_argument(argument: str) -> tuple[Path, float]:
    """ "FILE" or "FILE:STRENGTH" -> (file, strength), 1.0 unless given. A Windows drive's colon is the file's own."""
    file, colon, strength = argument.rpartition(":")
    drive_only = re.fullmatch(r"[A-Za-z]", file) and strength.startswith(("\\", "/"))
    if not colon or drive_only or Path(argument).exists():
        file, strength = argument, "1"
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not file or not math.isfinite(value):
        raise U1Error(f"LoRA {argument!r}: the strength after the colon is {strength!r}, expected a number such as 0.8")
    return Path(file), value


def _open_header(path: Path) -> Header:
    if path.is_dir():
        raise U1Error(f"{path}: is a folder; give the LoRA's .safetensors file")
    if not path.exists():
        raise U1Error(f"{path}: there is no such LoRA file")
    if path.suffix.lower() in PICKLES:
        raise U1Error(
            f"{path}: {path.suffix} files are not read, as loading one can run any program in it; "
            "use the .safetensors form"
        )
    header = read_header(path)
    if header.size_problem:
        raise U1Error(f"{path}: {header.size_problem}; download or copy it again")
    if not header.tensors:
        raise U1Error(f"{path}: holds no tensors")
    return header


def _parse_keys(header: Header) -> dict[str, LoraKey]:
    """Every tensor's name in the file -> what it is. The file must be of one form throughout."""
    keys = {name: parse_key(name) for name in header.tensors}
    if unknown := [name for name, key in keys.items() if key is None]:
        method = next(filter(None, map(other_method, unknown)), None)
        why = f": it is a {method}, and only plain LoRAs are read" if method else ""
        raise U1Error(f"{header.path}: {_some(unknown)} not of any known LoRA form for SenseNova-U1{why}")
    for what in ("prefix", "naming"):
        first: dict[str, str] = {}
        for name, key in keys.items():
            if what == "prefix" or key.naming:
                first.setdefault(getattr(key, what), name)
        if len(first) > 1:
            a, b, *_ = first.values()
            raise U1Error(f"{header.path}: mixes forms, e.g. {a} and {b}; other programs would load only a part of it")
    first_of: dict[tuple[str, str], str] = {}
    for name, key in keys.items():
        if (first_name := first_of.setdefault((key.name, key.part), name)) != name:
            raise U1Error(f"{header.path}: {first_name} and {name} are the same thing twice")
    return keys


def _read_tensors(header: Header) -> dict[str, Tensor]:
    try:
        with safe_open(str(header.path), framework="pt", device="cpu") as file:
            # Copies: what is read lies in the file's own pages, and goes wrong once that is written anew or cut short.
            tensors = {name: file.get_tensor(name).clone() for name in header.tensors}
    except (SafetensorError, OSError) as problem:
        raise U1Error(f"{header.path}: cannot be read ({problem})") from None
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and not tensor.isfinite().all():
            raise U1Error(
                f"{header.path}: {name} has numbers that are not finite; the file is damaged or its run diverged"
            )
    return tensors


def _read_full(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write_full` made, by checkpoint name."""
    header = _open_header(path)
    keys, tensors = _parse_keys(header), _read_tensors(header)
    if terms := [name for name, key in keys.items() if key.part != "full"]:
        raise U1Error(
            f"{path}: {_some(terms)} should not be here: the LoRA beside it names it as holding whole tensors"
        )
    return {key.name: tensors[name] for name, key in keys.items()}


def _modules(
    path: Path, metadata: Mapping[str, str], keys: Mapping[str, LoraKey], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, LoraModule], bool, list[str]]:
    """(modules in the file's order, whether all have their alpha in the file, notes)."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, key in keys.items():
        if key.part != "full":
            parts.setdefault(key.name, {})[key.part] = tensors[name]
    lacking = [
        f"{module} without its {side}" for module, has in parts.items() for side in ("down", "up") if side not in has
    ]
    if lacking:
        raise U1Error(f"{path}: {_some(lacking)}: half of a low-rank term is of no use; the file is incomplete")
    for module, has in parts.items():
        _check_pair(path, module, has["down"], has["up"])
    without = {module: has["down"].shape[0] for module, has in parts.items() if "alpha" not in has}
    assumed, notes = _alphas_elsewhere(path, next(iter(keys.values())).prefix, metadata, without)
    modules = {}
    for module, has in parts.items():
        alpha = _alpha(path, module, has["alpha"]) if "alpha" in has else assumed[module]
        down, up = has["down"], has["up"]
        modules[module] = LoraModule(down.flatten(1), up.flatten(1), alpha, tuple(down.shape[2:]))
    return modules, not without, notes


def _check_pair(path: Path, module: str, down: Tensor, up: Tensor) -> None:
    if down.dtype not in FLOATS or up.dtype not in FLOATS:
        raise U1Error(
            f"{path}: {module} is {DTYPE_NAMES[down.dtype]} and {DTYPE_NAMES[up.dtype]}, not fp32, bf16 or fp16"
        )
    of_convolution = down.dim() == 4 and up.dim() == 4 and up.shape[2:] == (1, 1)
    if not of_convolution and (down.dim() != 2 or up.dim() != 2):
        raise U1Error(
            f"{path}: {module} has down {tuple(down.shape)} and up {tuple(up.shape)}; only matrices are known, and "
            "convolutions of any kernel followed by 1 x 1"
        )
    if down.shape[0] != up.shape[1] or not down.shape[0]:
        raise U1Error(f"{path}: {module} has rank {down.shape[0]} in down but {up.shape[1]} in up")


def _alpha(path: Path, module: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or not 0 < (value := float(tensor)) < math.inf:
        raise U1Error(f"{path}: {module}.alpha is {tensor.tolist()!r}, expected one number above 0")
    return value


def _alphas_elsewhere(
    path: Path, prefix: str, metadata: Mapping[str, str], ranks: Mapping[str, int]
) -> tuple[dict[str, float], list[str]]:
    """Alphas of modules that have none in the file: as PEFT's settings have them, else the rank; and a note on it."""
    if not ranks:
        return {}, []
    settings = find_peft_settings(path, prefix, metadata)
    if settings:
        note = f"alpha is taken from {settings.source}"
        return {module: settings.alpha_of(module, rank) for module, rank in ranks.items()}, [note]
    note = f"{len(ranks)} modules have no alpha: it is taken to be the rank (scale 1)"
    return {module: float(rank) for module, rank in ranks.items()}, [note]


def _refuse_checkpoint(path: Path, modules: Mapping[str, LoraModule], full: Mapping[str, Tensor]) -> None:
    if not modules and any("embed_tokens" in name or "lm_head" in name for name in full):
        raise U1Error(f"{path}: is a whole model, not a LoRA; give it as the model")


def _full_file(path: Path, metadata: Mapping[str, str]) -> Path | None:
    name = metadata.get(FULL_FILE)
    if name is None:
        return None
    if not name or Path(name).name != name or name == path.name:
        raise U1Error(f"{path}: metadata {FULL_FILE} is {name!r}, expected the name of another file beside it")
    return path.with_name(name)


def _metadata(path: Path, kind: str, what: str) -> dict[str, str]:
    return {
        "format": "pt",
        BASE_KIND: kind,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"sensenova-{kind}/{what.replace(' ', '-')}",
        "modelspec.title": path.stem,
    }


def _some(items: list[str]) -> str:
    """ "a, b, c and 4 more"."""
    shown = ", ".join(items[:3])
    return shown + (f" and {len(items) - 3} more" if len(items) > 3 else "")
