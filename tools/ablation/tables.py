"""Tables, curves and sheets of the study: python -m tools.ablation.tables OUT/results --docs docs

Tables are printed as Markdown; pictures and the figures behind the tables go to --docs as ablation*.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from tools.nano.model import SIZE

from .run import FOLDED_RANKS
from .study import BASELINE, PROMPT_SETTINGS, SETTINGS, STYLES
from .summary import RANGES, Study, is_clear, markdown, spread

CORE = (BASELINE, "v", "logit", "dropout", "official")
WINDOW = 121
"""Steps of the moving mean, as in the report that is repeated."""
FIGURES = {
    "style": ("style", 2),
    "adherence": ("adherence", 3),
    "none style": ("style, no trigger", 2),
    "x0": ("x0-MSE, % of base", 1),
    "v": ("v-MSE, % of base", 1),
    "grain": ("grain", 2),
    "grid": ("grid", 2),
}
"""Figure -> its column's head and digits."""
FEWER = {figure: column for figure, column in FIGURES.items() if figure != "none style"}
EXPORTS = {
    "": "LoRA and the tensors trained whole",
    **{f"folded at rank {rank}": f"folded into the LoRA at rank {rank}" for rank in FOLDED_RANKS},
    "without the tensors trained whole": "the LoRA's file without them",
}


def main() -> None:
    args = _arguments()
    study = Study.read(args.results)
    for style in STYLES:
        print(f"\n### {style}\n\n{settings_table(study, style)}")
    print(f"\n### differences from the baseline\n\n{differences_table(study, study.settings(STYLES[0])[1:])}")
    print(f"\n### x0-MSE by t\n\n{ranges_table(study)}")
    print(f"\n### prompt\n\n{prompt_table(study)}")
    print(f"\n### 8 steps\n\n{steps_table(study)}")
    print(f"\n### exports\n\n{exports_table(study)}")
    write_curves(study, args.docs / "ablation_curves.png")
    for style in STYLES:
        columns = {"no LoRA": ("base", 2), "the style itself": (style, 0)}
        columns |= {SETTINGS[name].words: (f"{style}-{name}-0", 0) for name in CORE}
        write_sheet(args.results, columns, args.docs / f"ablation_{style}.jpg")
    columns = {"on the base, 50 steps": (f"ink-{BASELINE}-0", 0), "on the base, 8 steps": (f"ink-{BASELINE}-0", 3)}
    columns |= {"on the 8-step LoRA, 50": ("ink-stacked-0", 0), "on the 8-step LoRA, 8": ("ink-stacked-0", 2)}
    columns |= {"LoRA alone, 50": ("ink-lora-0", 0), "plain pictures too, 50": ("ink-contrast-0", 0)}
    write_sheet(args.results, columns, args.docs / "ablation_steps.jpg", rows=2)
    lines = ",\n".join(json.dumps(row) for row in study.as_plain())
    (args.docs / "ablation.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def settings_table(study: Study, style: str) -> str:
    """Mean ± standard deviation over the seeds, a row for each setting."""
    rows = []
    for name in study.settings(style):
        cells = [spread(study.values(name, style, figure), digits) for figure, (_, digits) in FIGURES.items()]
        rows.append([SETTINGS[name].words, *cells])
    for label, found in (("*no LoRA*", study.base[style]["base"]["none, 50 steps"]), ("*the style*", None)):
        found = found or study.base[style]["target"]
        cells = [f"{found[key]:.{digits}f}" if key in found else "" for key, (_, digits) in FIGURES.items()]
        rows.append([label, *cells])
    return markdown(["", *(head for head, _ in FIGURES.values())], rows)


def differences_table(study: Study, names: Sequence[str]) -> str:
    """Mean ± standard deviation of the paired differences; clear ones in bold."""
    rows = []
    for name in names:
        cells = [_difference(study.differences(name, figure), digits) for figure, (_, digits) in FEWER.items()]
        rows.append([SETTINGS[name].words, *cells])
    return markdown(["", *(head for head, _ in FEWER.values())], rows)


def _difference(values: Sequence[float], digits: int) -> str:
    text = f"{'+' if np.mean(values) > 0 else ''}{spread(values, digits)}"
    return f"**{text}**" if is_clear(values) else text


def ranges_table(study: Study) -> str:
    """x0-MSE by range of t, in each style."""
    keys = [f"x0 {low:g}-{high:g}" for low, high in RANGES]
    rows = []
    for name in study.settings(STYLES[-1]):
        cells = [spread(study.values(name, style, key), 0) for style in STYLES for key in keys]
        rows.append([SETTINGS[name].words, *cells])
    heads = [f"t {low:g} to {high:g}" for low, high in RANGES]
    return markdown(["% of base", *(f"{style}, {head}" for style in STYLES for head in heads)], rows)


def prompt_table(study: Study) -> str:
    """Style by where the training captions and the prompt have the trigger, in the style that all were tried with."""
    rows, style = [], STYLES[0]
    for name in PROMPT_SETTINGS:
        keys = ("first style", "last style", "none style", "first adherence", "last adherence")
        rows.append([SETTINGS[name].words, *(spread(study.values(name, style, key), 2) for key in keys)])
    heads = ["style, trigger first", "trigger last", "no trigger", "adherence, trigger first", "trigger last"]
    return markdown(["trained with", *heads], rows)


def steps_table(study: Study) -> str:
    """On the base or on the 8-step LoRA, drawn in 50 steps without it and in 8 with it; and the difference."""
    keys = ("style", "adherence", "grain", "8 steps style", "8 steps adherence", "8 steps grain")
    rows = []
    for style in STYLES:
        for name, words in ((BASELINE, "on the base"), ("stacked", SETTINGS["stacked"].words)):
            rows.append([f"{style}, {words}", *(spread(study.values(name, style, key), 2) for key in keys)])
        differences = [_difference(study.differences("stacked", key, [style]), 2) for key in keys]
        rows.append([f"{style}, difference", *differences])
    heads = ["50 steps: style", "adherence", "grain", "8 steps: style", "adherence", "grain"]
    return markdown(["trained", *heads], rows)


def exports_table(study: Study) -> str:
    """LoRA alone, with tensors trained whole, and what is left of these in one file."""
    rows = []
    for style in STYLES:
        looks = [("lora", "", "trained as a LoRA alone"), *((BASELINE, look, words) for look, words in EXPORTS.items())]
        for name, look, words in looks:
            cells = [spread(study.values(name, style, key, look), digits) for key, (_, digits) in FEWER.items()]
            rows.append([f"{style}, {words}", *cells])
    return markdown(["", *(head for head, _ in FEWER.values())], rows)


def write_curves(study: Study, path: Path) -> None:
    """Training errors as moving means and validation, of the core settings, mean over styles and seeds."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = ("training, x0-MSE", "training, v-MSE", "validation, x0-MSE in % of base")
    for name in CORE:
        curves = [result["curve"] for result in study.results if result["setting"] == name]
        for place, key in enumerate(("x0_mse", "v_mse")):
            mean = np.mean([curve[key] for curve in curves], axis=0)
            moving = np.convolve(mean, np.ones(WINDOW) / WINDOW, mode="valid")
            axes[place].plot(np.arange(WINDOW, len(mean) + 1), moving, label=SETTINGS[name].words.partition(":")[0])
        steps = [found["step"] for found in curves[0]["validation"]]
        held_out = np.mean([[found["held_out"] for found in curve["validation"]] for curve in curves], axis=0)
        axes[2].plot(steps, held_out, marker="o", markersize=3)
    for place, title in enumerate(titles):
        axes[place].set(title=title, xlabel="step")
        axes[place].grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


def write_sheet(results: Path, columns: Mapping[str, tuple[str, int]], path: Path, rows: int = 3) -> None:
    """A column for each heading: (name of the run's strip, which row of it), from the top down its first pictures."""
    head, gap, font = 34, 4, ImageFont.load_default(13)
    page = Image.new("RGB", (len(columns) * (SIZE + gap) - gap, head + rows * (SIZE + gap) - gap), "white")
    write = ImageDraw.Draw(page)
    for column, (label, (name, line)) in enumerate(columns.items()):
        left = column * (SIZE + gap)
        write.multiline_text((left + 2, 1), label.replace(": ", ":\n"), "black", font, spacing=2)
        with Image.open(results / f"{name}.jpg") as strip:
            for row in range(rows):
                picture = strip.crop((row * SIZE, line * SIZE, (row + 1) * SIZE, (line + 1) * SIZE))
                page.paste(picture, (left, head + row * (SIZE + gap)))
    page.save(path, quality=78)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
