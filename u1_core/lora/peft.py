"""PEFT keeps a LoRA's alpha beside the tensors, not among them: in adapter_config.json or in the file's metadata."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class PeftSettings:
    """The part of PEFT's config that gives each module's scale."""

    source: str
    """Where it was found, for messages."""
    alpha: float
    by_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, module: str, rank: int) -> float:
        """The alpha for which alpha / rank is PEFT's scale of this module."""
        for pattern, value in self.by_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        else:
            alpha = self.alpha
        # Rank-stabilised LoRA scales by alpha / sqrt(rank).
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def find_peft_settings(path: Path, metadata: Mapping[str, str]) -> PeftSettings | None:
    """What is said of the LoRA file at `path` in its metadata, or in adapter_config.json beside it; None if nothing."""
    if "lora_alpha" in metadata:
        return PeftSettings("its metadata", _alpha(path, metadata["lora_alpha"]))
    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return None
    try:
        raw = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise U1Error(f"{beside}: cannot be read as JSON ({problem})") from None
    if not isinstance(raw, dict) or "lora_alpha" not in raw:
        raise U1Error(f"{beside}: has no lora_alpha, so the scale of {path.name} is not known")
    patterns = {pattern: _alpha(beside, value) for pattern, value in (raw.get("alpha_pattern") or {}).items()}
    return PeftSettings(CONFIG, _alpha(beside, raw["lora_alpha"]), patterns, bool(raw.get("use_rslora")))


def _alpha(where: Path, value: Any) -> float:
    try:
        alpha = float(value)
    except (TypeError, ValueError):
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise U1Error(f"{where}: lora_alpha is {value!r}, expected a number above 0")
    return alpha
