"""What a spec means for one model: the modules, their shapes and sizes, from the config alone."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from u1_core.errors import U1Error
from u1_core.lora.spec import GROUPS, PRESETS, TARGETS, SpecEntry, parse_spec
from u1_core.model.config import FM_HEAD, LAYERS, U1Config, linear_modules, tensor_shapes

DEFAULT_UNFROZEN = (
    r"^fm_modules\.timestep_embedder\.",
    r"^fm_modules\.noise_scale_embedder\.",
    r"^fm_modules\.vision_model_mot_gen\.",
    r"^fm_modules\.fm_head\.",
)
"""The tensors that the reference recipe trains whole beside the LoRA."""

FINAL_NORM = "language_model.model.norm_mot_gen.weight"

_EXPERT_NUMBER = re.compile(r"(?<=\.experts\.)\d+")


@dataclass(frozen=True)
class PlannedModule:
    """One module that gets low-rank terms: down (rank, in_features), up (out_features, rank)."""

    path: str
    out_features: int
    in_features: int
    rank: int
    alpha: float

    @property
    def parameters(self) -> int:
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class LoraPlan:
    """The modules of a LoRA in the checkpoint's order, and what the spec named that this kind of model lacks."""

    kind: str
    """The model's kind: "u1", "u1.5" or "a3b"."""
    modules: tuple[PlannedModule, ...]
    absent: tuple[str, ...] = ()
    """Members of the spec's groups, or of the preset, that match nothing in this model."""
    dropout: float = 0.0

    @cached_property
    def parameters(self) -> int:
        """Trainable numbers in all."""
        return sum(module.parameters for module in self.modules)

    def n_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all down and up matrices at `dtype`."""
        return self.parameters * dtype.itemsize

    def by_target(self) -> dict[str, tuple[int, int]]:
        """Target, with experts taken together -> (modules, parameters), in the plan's order."""
        modules, parameters = Counter(), Counter()
        for module in self.modules:
            target = _EXPERT_NUMBER.sub("*", target_of(module.path) or module.path)
            modules[target] += 1
            parameters[target] += module.parameters
        return {target: (modules[target], parameters[target]) for target in modules}


def plan_lora(config: U1Config, spec_or_preset: str, dropout: float = 0.0) -> LoraPlan:
    """Apply a spec, or a preset by name, to a model.

    A target or a group that is written in a spec must match something; so must a preset as a whole. Members of a
    group or preset that this kind of model lacks are listed in `absent`. `dropout` is the share of each module's
    inputs that training zeroes. Raises U1Error naming the entry, and the nearest target that does match.
    """
    if not 0.0 <= dropout < 1.0:
        raise U1Error(f"LoRA dropout is {dropout}, expected a share from 0 up to, but not including, 1")
    preset = spec_or_preset.strip() in PRESETS
    entries = parse_spec(PRESETS[spec_or_preset.strip()] if preset else spec_or_preset)
    linears = linear_modules(config)
    paths = _paths_by_target(linears)
    chosen: dict[str, tuple[int, float]] = {}
    absent: list[str] = []
    for entry in entries:
        matched = [path for member in entry.members for path in paths.get(member, ())]
        if entry.rank and not matched and not preset:
            raise U1Error(_no_match(config, entry, paths))
        absent += [member for member in entry.members if entry.rank and member not in paths]
        for path in matched:
            chosen.pop(path, None)
            if entry.rank:
                chosen[path] = (entry.rank, entry.alpha)
    if not chosen:
        raise U1Error(f"LoRA spec {spec_or_preset!r} leaves no module of this {config.kind} model with a LoRA")
    modules = tuple(PlannedModule(path, *linears[path], *chosen[path]) for path in linears if path in chosen)
    return LoraPlan(config.kind, modules, tuple(dict.fromkeys(absent)), dropout)


def select_unfrozen(config: U1Config, patterns: Sequence[str]) -> list[str]:
    """Names of the tensors that regular expressions (`re.search`) pick for full training, in the checkpoint's order.

    Only `fm_modules.*` and the generation tower's final norm may be picked. Raises U1Error naming the pattern.
    """
    names = list(tensor_shapes(config))
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as problem:
            raise U1Error(f"unfreeze pattern {pattern!r} is not a regular expression: {problem}") from None
        if not found:
            raise U1Error(f"unfreeze pattern {pattern!r} matches no tensor of this {config.kind} model{_like(pattern)}")
        if frozen := [name for name in found if not name.startswith("fm_modules.") and name != FINAL_NORM]:
            raise U1Error(
                f"unfreeze pattern {pattern!r} matches {frozen[0]}, which cannot be trained whole; "
                f"only fm_modules.* and {FINAL_NORM} can"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def target_of(path: str) -> str | None:
    """The single target that names a module: "…layers.3.self_attn.q_proj_mot_gen" -> "q_proj_mot_gen".

    None for modules that the spec language cannot name, such as those of the understanding tower.
    """
    local = path
    if path.startswith(f"{LAYERS}."):
        local = path[len(LAYERS) + 1 :].partition(".")[2].removeprefix("self_attn.")
    return local if _EXPERT_NUMBER.sub("*", local) in TARGETS else None


def _paths_by_target(linears: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Single target -> the modules of this model that it names; experts by number and by `*`."""
    paths: dict[str, list[str]] = {}
    for path in linears:
        target = target_of(path)
        for name in {target, _EXPERT_NUMBER.sub("*", target)} if target else ():
            paths.setdefault(name, []).append(path)
    return paths


def _no_match(config: U1Config, entry: SpecEntry, paths: dict[str, list[str]]) -> str:
    if entry.target in GROUPS:
        known = [group for group, members in GROUPS.items() if all(member in paths for member in members)]
    else:
        known = list(paths)
    closest = difflib.get_close_matches(entry.target, known, n=1, cutoff=0.0)[0]
    text = f"LoRA spec entry {entry.text!r} matches no module of this {config.kind} model; "
    text += f"the nearest target that does is {closest!r}"
    if config.pixel_head and entry.members[0].startswith(FM_HEAD):
        text += r" (its head is convolutional: train it whole, with the unfreeze pattern '^fm_modules\.fm_head\.')"
    return text


def _like(pattern: str) -> str:
    """Words that point at the nearest group of trainable tensors."""
    groups = {re.sub(r"[\^\\$]", "", known): known for known in DEFAULT_UNFROZEN}
    closest = difflib.get_close_matches(re.sub(r"[\^\\$]", "", pattern), groups, n=1, cutoff=0.5)
    return f"; did you mean {groups[closest[0]]!r}?" if closest else ""
