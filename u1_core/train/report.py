"""report.html: all that a run's folder tells, on one page that opens without a network."""

import math
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from u1_core.train.charts import Series, histogram, line_chart, smoothed
from u1_core.train.page import card, cards, figure, page, section, table, tiles
from u1_core.train.recipe_file import dump_recipe
from u1_core.train.report_warnings import warnings_of
from u1_core.train.rng import generator
from u1_core.train.run_log import Record, RunLog, read_run
from u1_core.train.timesteps import draw_timesteps
from u1_core.train.validation import T_EDGES, judged_by
from u1_core.weights.write import replacing

REPORT = "report.html"
T_BINS = 20
T_EPS = 0.05
"""As in every released config."""
EXPECTED_DRAWS = 200_000
SHOWN_PREVIEWS = 8
"""Steps in the strip; the folder has them all."""


def write_report(folder: Path) -> Path:
    """Build FOLDER/report.html anew from the run's files alone. Raises U1Error if it is no run."""
    path = folder / REPORT
    html = report_page(read_run(folder))
    with replacing(path, overwrite=True) as file:
        file.write(html.encode("utf-8"))
    return path


def report_page(run: RunLog) -> str:
    """The page as HTML."""
    recipe = run.recipe
    return page(
        f"{recipe.run_name} · U1 Style Studio",
        [
            f"<h1>{escape(recipe.run_name)}</h1><p class=soft>{escape(_subtitle(run))}</p>",
            tiles(_figures(run)),
            _warnings(run),
            section("How much better than the base model", _validation(run)),
            section("Previews", _previews(run)),
            section("Loss", _losses(run)),
            section("What was drawn", _draws(run)),
            section("Time and memory", _machine(run)),
            section("Recipe", f"<pre>{escape(dump_recipe(recipe))}</pre>"),
            section("Machine and files", _manifest(run)),
        ],
    )


def loss_series(run: RunLog, key: str, name: str = "") -> Series:
    """A curve of the log for a logarithmic scale, smoothed over a thirtieth of the run, with its raw values behind."""
    raw = [(step, value) for step, value in run.curve(key) if value > 0]
    return Series(name, smoothed(raw, _window(run), log=True), faint=raw)


def validation_series(run: RunLog, which: str, name: str, measure: str = "x0") -> Series:
    """The percentage of the base model's error over the run, with its band. `which`: "held_out" or "training"."""
    found = [(record["step"], record[which][measure]) for record in run.validations if which in record]
    return Series(
        name,
        [(step, share["percent"]) for step, share in found],
        band=[(step, share["low"], share["high"]) for step, share in found],
        dots=True,
    )


def preview_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Prompt number -> {"base" or "step_000600": its PNG}, steps in order, the base first."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "previews").glob("*.png")):
        stem, _, number = path.stem.rpartition("_")
        if number.isdigit() and (stem == "base" or stem.startswith("step_")):
            found.setdefault(number, {})[stem] = path
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def prompt_of(path: Path) -> str:
    """The prompt that a preview was drawn from."""
    with Image.open(path) as image:
        lines = image.info.get("parameters", "").splitlines()
    return next((line.removeprefix("prompt: ") for line in lines if line.startswith("prompt: ")), path.stem)


def _subtitle(run: RunLog) -> str:
    done = run.pictures[-1]["step"] if run.pictures else 0
    train, parts = run.recipe.train, [f"{done:,} of {run.recipe.train.steps:,} steps"]
    parts.append(f"{train.loss_type} loss, t {train.t_dist}, lr {train.lr:g}")
    if run.recipe.model:
        parts.append(Path(run.recipe.model).name)
    if run.recipe.style.trigger:
        parts.append(f"trigger “{run.recipe.style.trigger}”")
    return " · ".join(parts)


def _figures(run: RunLog) -> dict[str, str]:
    """What one looks for first."""
    facts: dict[str, str] = {}
    if validations := run.validations:
        which = judged_by(validations[-1])
        share = validations[-1][which]["x0"]
        words = "held-out pictures" if which == "held_out" else "training pictures"
        facts[f"of the base model's error, {words} ({share['low']:.0f} to {share['high']:.0f})"] = (
            f"{share['percent']:.1f} %"
        )
    if "gap" in (validations[-1] if validations else {}):
        facts["points that held-out pictures lag behind (memorising)"] = f"{validations[-1]['gap']:+.1f}"
    if run.steps:
        errors = [value for _, value in run.curve("x0_mse")]
        tenth = max(1, len(errors) // 10)
        facts["x0-MSE, mean of the last tenth"] = f"{fmean(errors[-tenth:]):.4g}"
        facts["x0-MSE, mean of the first tenth"] = f"{fmean(errors[:tenth]):.4g}"
        facts["a step, median"] = _seconds(sorted(record["seconds"] for record in run.steps)[len(run.steps) // 2])
        facts["in all steps"] = _duration(sum(record["seconds"] for record in run.steps))
    if peaks := [memory for _, memory in run.curve("memory_bytes")]:
        facts["memory at most"] = f"{max(peaks) / 2**30:.1f} GiB"
    return facts


def _warnings(run: RunLog) -> str:
    items = "".join(f"<li>{escape(one)}</li>" for one in warnings_of(run))
    return f'<div class="warnings"><b>Worth knowing</b><ul>{items}</ul></div>' if items else ""


def _validation(run: RunLog) -> str:
    if not run.validations:
        return ""
    last = run.validations[-1]
    which = judged_by(last)
    both = [("held_out", "held out"), ("training", "trained on")]
    lines = [validation_series(run, key, name) for key, name in both]
    ranges = []
    for place, (start, end) in enumerate(pairwise(T_EDGES)):
        shares = [
            (record["step"], share)
            for record in run.validations
            if which in record
            for share in record[which]["ranges"]
            if share["from"] == start
        ]
        ranges.append(
            Series(
                f"t {start:g} to {end:g}",
                [(step, share["percent"]) for step, share in shares],
                band=[(step, share["low"], share["high"]) for step, share in shares] if place in (0, 3) else (),
                dots=True,
            )
        )
    head = ["", "% of base", "95 % band", "x0-MSE", "base x0-MSE"]
    rows = [_share_row(f"t {one['from']:g} to {one['to']:g}", one) for one in last[which]["ranges"]]
    rows += [_share_row("all t", last[which]["x0"]), _share_row("all t, v-MSE", last[which]["v"])]
    asked = f"{last[which]['pictures']} pictures, {last[which]['questions']} questions, always the same"
    overall, by_t = (line_chart(found, "step", "% of base", level=100) for found in (lines, ranges))
    charts = cards(
        card("x0-MSE on fixed pictures, t and noise", overall, f"{asked}; the shade is a 95 % band"),
        card("By t: 0 is noise, 1 the picture", by_t, "bands for the outer two"),
    )
    return charts + card("At the last look", table(head, rows))


def _previews(run: RunLog) -> str:
    parts = []
    for files in preview_files(run.folder).values():
        steps = [stem for stem in files if stem != "base"]
        stride = math.ceil(len(steps) / SHOWN_PREVIEWS)
        shown = [*steps[: -1 : max(1, stride)], *steps[-1:]]
        stems = (["base"] if "base" in files else []) + shown
        figures = "".join(_preview(stem, files[stem]) for stem in stems)
        parts.append(f"<p>{escape(prompt_of(files[stems[0]]))}</p><div class=strip>{figures}</div>")
    return "".join(parts)


def _preview(stem: str, path: Path) -> str:
    return figure(path, _stem_words(stem), f"previews/{path.name}", stem == "base")


def _losses(run: RunLog) -> str:
    note = f"Each step has another picture, t and noise; the line is the geometric mean of {_window(run)} steps"
    return cards(
        card("x0-MSE", line_chart([loss_series(run, "x0_mse")], "step", "x0-MSE", log=True), note),
        card(
            "v-MSE",
            line_chart([loss_series(run, "v_mse")], "step", "v-MSE", log=True),
            "x0-MSE / (1 - t)²: mostly about t near 1",
        ),
        card("Learning rate", line_chart([Series("", run.curve("lr"))], "step", "lr", from_zero=True)),
        card("Gradient norm", line_chart([loss_series(run, "grad_norm")], "step", "norm", log=True)),
    )


def _draws(run: RunLog) -> str:
    if not run.pictures:
        return ""
    train, total = run.recipe.train, len(run.pictures)
    counts = _binned([record["t"] for record in run.pictures])
    expected = _binned(draw_timesteps(train, EXPECTED_DRAWS, T_EPS, generator(0, 0, "", "expected")).tolist())
    bars = histogram(counts, [count * total / EXPECTED_DRAWS for count in expected], "t", "pictures")
    shares = {"text": train.cond_dropout_text, "both": train.cond_dropout_both}
    shares[""] = 1 - sum(shares.values())
    dropped = run.counts("dropped")
    names = {"text": "caption dropped (text)", "both": "caption dropped (both)", "": "caption kept"}
    rows = [
        [names[key], f"{dropped[key]:,}", f"{dropped[key] / total:.1%}", f"{share:.1%}"]
        for key, share in shares.items()
    ]
    sizes = [[size, f"{count:,}", f"{count / total:.1%}"] for size, count in run.counts("bucket").most_common(12)]
    return cards(
        card("Timesteps", bars, f"{train.t_dist}; 0 is noise, 1 the picture"),
        card(
            "Dropout of the condition",
            table(["", "pictures", "share", "asked for"], rows)
            + "<h3>Sizes</h3>"
            + table(["", "pictures", "share"], sizes),
        ),
    )


def _machine(run: RunLog) -> str:
    raw = run.curve("seconds")
    seconds = Series("a step", smoothed(raw, _window(run)), faint=raw)
    waits = Series("of it, waiting for pictures", smoothed(run.curve("data_wait_s"), _window(run)))
    memory = [(step, value / 2**30) for step, value in run.curve("memory_bytes")]
    spent = _time_spent(run)
    return cards(
        card("Seconds a step", line_chart([seconds, waits], "step", "s", from_zero=True)),
        card("Memory in use at most", line_chart([Series("", memory)], "step", "GiB", from_zero=True)),
        card("Where the time went", table(["", "time", "share"], spent)),
        card("The plan", _plan(run)),
    )


def _plan(run: RunLog) -> str:
    """How a step was run, and what it was predicted to take; nothing on a CPU, where there is nothing to plan."""
    told = [*run.of("plan"), *run.of("measured")]
    if not told:
        return ""
    last = told[-1]
    measured = "seconds" in last
    rows = [
        ["a step", _seconds(last["predicted_seconds"]), _seconds(last["seconds"]) if measured else "–"],
        [
            "memory reserved",
            f"{last['predicted_bytes'] / 2**30:.1f} GiB",
            f"{last['reserved_bytes'] / 2**30:.1f} GiB" if measured else "–",
        ],
    ]
    kept = ", ".join(f"{count} keep {name}" for name, count in last["kept"].items())
    placed = f"{last['resident']} layers on the card, {last['slots']} slots for the others; of activations, {kept}"
    return table(["", "predicted", "measured"], rows) + f'<p class="soft">{escape(placed)}</p>'


def _time_spent(run: RunLog) -> list[list[str]]:
    if not run.steps:
        return []
    waited = sum(wait for _, wait in run.curve("data_wait_s"))
    steps = sum(record["seconds"] for record in run.steps)
    parts = {"steps": steps - waited, "waiting for pictures": waited}
    parts |= {
        f"{event}s": sum(record.get("seconds", 0.0) for record in run.of(event)) for event in ("validation", "preview")
    }
    total = sum(parts.values())
    return [[name, _duration(value), f"{value / total:.1%}"] for name, value in parts.items()]


def _manifest(run: RunLog) -> str:
    rows = []
    for part, facts in run.manifest.items():
        if part == "plan":  # it is told with the time and memory that it took
            continue
        inner = {f"{part} {key}": value for key, value in facts.items()} if isinstance(facts, dict) else {part: facts}
        rows += [[key, _shown(value)] for key, value in inner.items()]
    for name, file in run.manifest.get("model", {}).get("files", {}).items():
        rows.append([name, f"SHA-256 {file['sha256'][:16]}…" if file["sha256"] else "not hashed"])
    return card("manifest.json", table(["", ""], rows)) if rows else ""


def _shown(value: Any) -> str:
    """A value of the manifest; of a long list only how long it is."""
    if isinstance(value, dict | list):
        return f"{len(value):,} entries"
    return "–" if value is None else str(value)


def _share_row(name: str, share: Record) -> list[str]:
    band = f"{share['low']:.1f} to {share['high']:.1f}"
    return [name, f"{share['percent']:.1f}", band, f"{share['mean']:.5g}", f"{share['base_mean']:.5g}"]


def _window(run: RunLog) -> int:
    return max(1, len(run.steps) // 30)


def _binned(values: list[float]) -> list[int]:
    return torch.histc(torch.tensor(values), T_BINS, 0.0, 1.0).int().tolist()


def _stem_words(stem: str) -> str:
    return "without the LoRA" if stem == "base" else f"step {int(stem.removeprefix('step_')):,}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
