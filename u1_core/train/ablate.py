"""The same run over a grid of settings: same seed, same prompts, one report that puts them side by side.

Where the grid has several seeds, runs that differ in nothing else are one row and one line of the report: their mean,
and how far seeds alone move it. A difference between settings that is smaller than that says nothing.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml

from u1_core.errors import U1Error, nearest
from u1_core.train.charts import Series, line_chart
from u1_core.train.page import card, cards, figure, page, section, table, tiles
from u1_core.train.recipe import Recipe, field_docs
from u1_core.train.recipe_file import dump_recipe, parse_recipe
from u1_core.train.report import REPORT, loss_series, preview_files, prompt_of, validation_series
from u1_core.train.run_log import RunLog, read_run
from u1_core.train.validation import judged_by
from u1_core.weights.write import replacing

SEED = "train.seed"
PLACES = ("run_name", "runtime.out_dir", "train.checkpoint_dir")
"""Fields that say where a run lies: each cell has its own."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    name: str
    """The changes in short, which is also the run's name: "loss_type=v, t_dist=uniform"."""
    recipe: Recipe
    setting: str
    """The changes without the seed: what the runs of several seeds have in common."""

    @property
    def folder(self) -> Path:
        return Path(self.recipe.runtime.out_dir) / self.name

    @property
    def finished(self) -> bool:
        """Whether the run has left its results."""
        return any((self.folder / f"{self.name}{part}.safetensors").is_file() for part in ("", ".full"))

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.folder / "recipe.yaml").is_file()


def parse_settings(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """ "train.loss_type=x0,v" … -> {"train.loss_type": ["x0", "v"]}. Raises U1Error naming what is wrong."""
    known = [doc.key for doc in field_docs()]
    settings: dict[str, list[Any]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not text.strip():
            raise U1Error(f"--set {argument!r}: expected KEY=VALUE,VALUE… such as train.loss_type=x0,v")
        if key not in known:
            raise U1Error(f"--set {argument!r}: a recipe has no field {key!r}{nearest(key, known)}")
        if key in PLACES:
            raise U1Error(f"--set {argument!r}: {key} is each run's own; --out says where they all go")
        if key in settings:
            raise U1Error(f"--set {argument!r}: {key} is set twice; give all its values at once")
        try:
            settings[key] = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            raise U1Error(f"--set {argument!r}: the values cannot be read; put quotes around special signs") from None
    return settings


def grid(recipe: Recipe, settings: Mapping[str, Sequence[Any]], out: Path) -> list[Cell]:
    """Every combination of the settings' values, the last varying fastest. Raises U1Error for a value that will not do.

    Runs lie in `out`, each under the name of what it changes.
    """
    cells = []
    for values in itertools.product(*settings.values()):
        changes = dict(zip(settings, values, strict=True))
        parts = {key: f"{key.rpartition('.')[2]}={_short(value)}" for key, value in changes.items()}
        name = ", ".join(parts.values())
        setting = ", ".join(part for key, part in parts.items() if key != SEED) or "all seeds"
        changed = with_changes(recipe, changes)
        runtime = replace(changed.runtime, out_dir=str(out))
        train = replace(changed.train, checkpoint_dir=None)
        cells.append(Cell(name, replace(changed, run_name=name, runtime=runtime, train=train), setting))
    if twice := [cell.name for cell in cells if sum(other.name == cell.name for other in cells) > 1]:
        raise U1Error(f"--set gives {twice[0]!r} twice; leave out one of the two")
    return cells


def write_ablation_report(out: Path, cells: Sequence[Cell]) -> Path:
    """OUT/report.html over the cells that have begun. Raises U1Error if none has."""
    runs: dict[str, list[RunLog]] = {}
    for cell in cells:
        if cell.begun:
            runs.setdefault(cell.setting, []).append(read_run(cell.folder))
    if not runs:
        raise U1Error(f"{out}: none of the {len(cells)} runs has begun")
    note = "errors as shares of the base model's"
    if any(len(seeds) > 1 for seeds in runs.values()):
        note += "; mean ± standard deviation over the seeds"
    finished = sum(cell.finished for cell in cells)
    html = page(
        f"{out.name} · ablation",
        [
            f"<h1>{escape(out.name)}</h1>",
            tiles({"runs": str(len(cells)), "finished": str(finished)}),
            section("In figures", card("After the last step", _table(runs), note)),
            section("Curves", _curves(runs)),
            section("Same prompt, same seed", _sheet(runs)),
        ],
    )
    path = out / REPORT
    with replacing(path, overwrite=True) as file:
        file.write(html.encode("utf-8"))
    return path


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`recipe` with these fields as if its file said so, and checked as a file is."""
    raw = yaml.safe_load(dump_recipe(recipe))
    for key, value in changes.items():
        section_name, _, name = key.rpartition(".")
        (raw[section_name] if section_name else raw)[name] = value
    told = " ".join(f"--set {key}={_short(value)}" for key, value in changes.items())
    try:
        return parse_recipe(yaml.safe_dump(raw, allow_unicode=True), told)
    except U1Error as problem:
        # The line is that of a file which nobody has seen.
        raise U1Error(re.sub(rf"^({re.escape(told)}) line \d+", r"\1", str(problem))) from None


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", text)


def _table(runs: Mapping[str, Sequence[RunLog]]) -> str:
    """A row for each setting, the best first."""
    rows = []
    for name, seeds in runs.items():
        steps = [run.pictures[-1]["step"] if run.pictures else 0 for run in seeds]
        row, order = [name, f"{min(steps):,}", str(len(seeds))], float("inf")
        if all(run.validations for run in seeds):
            last = [run.validations[-1] for run in seeds]
            x0, v = ([found[judged_by(found)][measure] for found in last] for measure in ("x0", "v"))
            order = fmean(share["percent"] for share in x0)
            row += [_spread([share["percent"] for share in shares]) for shares in (x0, v)]
            row += [f"{x0[0]['low']:.1f} to {x0[0]['high']:.1f}" if len(seeds) == 1 else "–"]
            row += [_spread([found["gap"] for found in last], "+") if all("gap" in found for found in last) else "–"]
        else:
            row += ["–"] * 4
        seconds = [record["seconds"] for run in seeds for record in run.steps]
        row.append(f"{median(seconds):.3g}" if seconds else "–")
        rows.append((order, row))
    head = ["", "steps", "seeds", "x0-MSE, %", "v-MSE, %", "95 % band of x0", "held out lags by", "s a step"]
    return table(head, [row for _, row in sorted(rows, key=lambda item: item[0])])


def _spread(values: Sequence[float], sign: str = "") -> str:
    """ "58.3 ± 1.0", of a single value "58.3"."""
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _curves(runs: Mapping[str, Sequence[RunLog]]) -> str:
    """One line a setting; bands and raw values would hide one another."""
    by_measure = []
    for measure in ("x0", "v"):
        lines = []
        for name, seeds in runs.items():
            judges = [judged_by(run.validations[-1]) if run.validations else "training" for run in seeds]
            found = [validation_series(run, which, name, measure) for run, which in zip(seeds, judges, strict=True)]
            lines.append(_mean_line(name, found))
        by_measure.append(line_chart(lines, "step", "% of base", level=100))
    for key, y_name in (("x0_mse", "x0-MSE"), ("v_mse", "v-MSE")):
        lines = [_mean_line(name, [loss_series(run, key, name) for run in seeds]) for name, seeds in runs.items()]
        by_measure.append(line_chart(lines, "step", y_name, log=True))
    titles = ("Validation, x0-MSE", "Validation, v-MSE", "Training, x0-MSE", "Training, v-MSE")
    return cards(*(card(title, chart) for title, chart in zip(titles, by_measure, strict=True)))


def _mean_line(name: str, lines: Sequence[Series]) -> Series:
    """The mean of several lines wherever all have a point."""
    by_x = [dict(line.points) for line in lines]
    shared = [x for x in by_x[0] if all(x in points for points in by_x)]
    return Series(name, [(x, fmean(points[x] for points in by_x)) for x in shared], dots=lines[0].dots)


def _sheet(runs: Mapping[str, Sequence[RunLog]]) -> str:
    """For each prompt the model without a LoRA, and the newest preview of every setting's first seed."""
    folders = {name: seeds[0].folder for name, seeds in runs.items()}
    files = {name: preview_files(folder) for name, folder in folders.items()}
    numbers = list(dict.fromkeys(number for found in files.values() for number in found))
    parts = []
    for number in numbers:
        figures, prompt = [], ""
        for name, found in files.items():
            pictures = found.get(number, {})
            prompt = prompt or next((prompt_of(path) for path in pictures.values()), "")
            if "base" in pictures and not figures:
                figures.append(figure(pictures["base"], "without a LoRA", base=True))
            if newest := [path for stem, path in pictures.items() if stem != "base"][-1:]:
                figures.append(figure(newest[0], name, f"{folders[name].name}/previews/{newest[0].name}"))
        parts.append(f"<p>{escape(prompt)}</p><div class=strip>{''.join(figures)}</div>")
    return "".join(parts)
