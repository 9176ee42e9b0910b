"""PEFT keeps a LoRA's alpha beside the tensors, not among them: in adapter_config.json, or in the file's metadata."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error

CONFIG = "adapter_config.json"
_MODEL = "adapter_model.safetensors"
"""What PEFT calls the file that its config is beside."""
_PREFIX = "base_model.model."
_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class PeftSettings:
    """The part of PEFT's config that gives each module's scale."""

    source: str
    """Where it was found, for messages."""
    alpha: float
    by_pattern: Mapping[re.Pattern[str], float]
    """Alphas of the modules whose whole path a pattern matches, the first that does."""
    rank_stabilised: bool

    def alpha_of(self, module: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of this module."""
        found = (alpha for pattern, alpha in self.by_pattern.items() if pattern.fullmatch(module))
        alpha = next(found, self.alpha)
        # Rank-stabilised LoRA scales by alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def find_peft_settings(path: Path, prefix: str, metadata: Mapping[str, str]) -> PeftSettings | None:
    """What is said of the LoRA file at `path`, whose keys begin with `prefix`: in its metadata, or, if its name or keys
    are PEFT's, in adapter_config.json beside it; None if nothing. Raises U1Error for what cannot be understood.
    """
    if "lora_alpha" in metadata:
        return _settings("its metadata", path, {key: _value(metadata[key]) for key in _SETTINGS if key in metadata})
    beside = path.with_name(CONFIG)
    # A config says nothing of other programs' files, which may lie in the same folder.
    if not (path.name == _MODEL or prefix.startswith(_PREFIX)) or not beside.is_file():
        return None
    try:
        raw = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise U1Error(f"{beside}: cannot be read as JSON ({problem})") from None
    if not isinstance(raw, dict) or "lora_alpha" not in raw:
        raise U1Error(f"{beside}: has no lora_alpha, so the scale of {path.name} is not known")
    return _settings(CONFIG, beside, raw)


def _settings(source: str, where: Path, raw: Mapping[str, Any]) -> PeftSettings:
    patterns = raw.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise U1Error(f"{where}: alpha_pattern is {patterns!r}, expected alphas by pattern")
    by_pattern = {_pattern(where, pattern): _alpha(where, value) for pattern, value in patterns.items()}
    rank_stabilised = _rank_stabilised(where, raw.get("use_rslora") or False)
    return PeftSettings(source, _alpha(where, raw["lora_alpha"]), by_pattern, rank_stabilised)


def _pattern(where: Path, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})")
    except re.error as problem:
        raise U1Error(f"{where}: alpha_pattern {pattern!r} is not a regular expression ({problem.msg})") from None


def _rank_stabilised(where: Path, value: Any) -> bool:
    if (answer := str(value).lower()) not in ("true", "false"):
        raise U1Error(f"{where}: use_rslora is {value!r}, expected true or false")
    return answer == "true"


def _value(text: str) -> Any:
    """A value of the metadata, where all is text: as JSON if it is that."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _alpha(where: Path, value: Any) -> float:
    try:
        alpha = float(value)
    except (TypeError, ValueError, OverflowError):
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise U1Error(f"{where}: lora_alpha is {value!r}, expected a number above 0")
    return alpha
