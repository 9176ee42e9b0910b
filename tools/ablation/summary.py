"""The study's figures: of every run, setting against baseline, mean and spread over the seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from u1_core.train.validation import T_EDGES

from .measures import QUESTION_PICTURES, question_times
from .study import BASELINE, SETTINGS, STYLES, Way

T_EPS = 0.05
"""Floor of 1 - t in v-MSE: nano's, as in training."""
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Student's t for a 95 % interval of the mean, by how many values there are."""
RANGES = tuple(pairwise(T_EDGES))


def percent_of_base(
    ours: Sequence[float], base: Sequence[float], measure: str, low: float = 0, high: float = 1
) -> float:
    """100 * mean error / the base model's, over the questions with low <= t < high. `measure` is "x0" or "v"."""
    times = question_times() * QUESTION_PICTURES
    weights = [(1 if measure == "x0" else max(1 - t, T_EPS) ** -2) * (low <= t < high) for t in times]
    summed = [sum(w * e for w, e in zip(weights, errors, strict=True)) for errors in (ours, base)]
    return 100 * summed[0] / summed[1]


def figures(result: Mapping[str, Any], look: str = "") -> dict[str, float]:
    """Every figure of a run by a short name."""
    found, trigger = result["looks"][look], SETTINGS[result["setting"]].trigger
    as_trained = found["ways"][Way(trigger).name]
    named = dict(as_trained)
    for label, way in (
        ("first", Way("first")),
        ("last", Way("last")),
        ("none", Way("none")),
        ("8 steps", Way(trigger, few_steps=True)),
    ):
        named |= {f"{label} {key}": value for key, value in found["ways"].get(way.name, {}).items()}
    for measure in ("x0", "v"):
        named[measure] = percent_of_base(found["errors"], result["base_errors"], measure)
        for low, high in RANGES:
            named[f"{measure} {low:g}-{high:g}"] = percent_of_base(
                found["errors"], result["base_errors"], measure, low, high
            )
    return named


@dataclass(frozen=True)
class Study:
    """All results that are there."""

    results: Sequence[Mapping[str, Any]]
    base: Mapping[str, Any]
    """Style -> what the model without a LoRA and the style itself measure."""

    @classmethod
    def read(cls, folder: Path) -> "Study":
        files = sorted(folder.glob("*-*.json"))
        read = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        return cls(read, json.loads((folder / "base.json").read_text(encoding="utf-8")))

    @cached_property
    def _figures(self) -> dict[tuple[str, str, str], dict[int, dict[str, float]]]:
        found: dict[tuple[str, str, str], dict[int, dict[str, float]]] = {}
        for result in self.results:
            for look in result["looks"]:
                of_seed = found.setdefault((result["setting"], result["style"], look), {})
                of_seed[result["seed"]] = figures(result, look)
        return found

    def settings(self, style: str) -> list[str]:
        """Those that have runs in this style, in the study's order."""
        return [name for name in SETTINGS if (name, style, "") in self._figures]

    def values(self, setting: str, style: str, figure: str, look: str = "") -> list[float]:
        """By seed."""
        return [named[figure] for _, named in sorted(self._figures[setting, style, look].items())]

    def as_plain(self) -> list[dict[str, Any]]:
        """Every figure of every run, for a file."""
        return [
            {
                "setting": setting,
                "style": style,
                "look": look,
                "seed": seed,
                "figures": {name: round(value, 4) for name, value in named.items()},
            }
            for (setting, style, look), by_seed in self._figures.items()
            for seed, named in sorted(by_seed.items())
        ]

    def differences(self, setting: str, figure: str, styles: Sequence[str] = ()) -> list[float]:
        """This setting's figure minus the baseline's, of every seed and style that both have."""
        found = []
        for style in styles or [style for style in STYLES if setting in self.settings(style)]:
            ours, theirs = self._figures[setting, style, ""], self._figures[BASELINE, style, ""]
            found += [ours[seed][figure] - theirs[seed][figure] for seed in sorted(ours) if seed in theirs]
        return found


def spread(values: Sequence[float], digits: int) -> str:
    """ "0.85 ± 0.02": mean and standard deviation; of a single value "0.85"."""
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def is_clear(differences: Sequence[float]) -> bool:
    """Whether the 95 % interval of their mean leaves out 0, by Student's t."""
    if len(differences) == 1:
        return False
    reach = T_95[len(differences)] * stdev(differences) / len(differences) ** 0.5
    return abs(fmean(differences)) > reach


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
