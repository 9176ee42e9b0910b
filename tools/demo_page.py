"""What `make demo` shows: a page in one file that opens without a network, and the same as a picture."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tools.nano.style_measures import StyleMeasures, nearest_files
from tools.nano.style_run import TRIGGER
from u1_core.train.charts import line_chart
from u1_core.train.page import card, cards, page, section, thumbnail, tiles
from u1_core.train.report import loss_series, validation_series
from u1_core.train.run_log import RunLog
from u1_core.weights.write import replacing

BASE, STYLED, FAST = (50, 4.0), (50, 2.0), (8, 1.0)
"""Sampling steps and guidance scale. Guidance sharpens what a LoRA of so few pictures does to each token by itself: at
4 a styled picture shows their borders, at 2 it has as much of the style and of its caption."""
COLUMNS = {
    "base_50": "base, 50 steps, cfg 4",
    "style_50": "style, 50 steps, cfg 2",
    "base_8": "base, 8 steps",
    "style_8": "style, 8 steps",
}
STYLE = """<style>
.hero{display:flex;flex-wrap:wrap;gap:1rem;align-items:center;margin:1.5rem 0}
.hero figure{width:min(21rem,100%)}.hero span{font-size:2rem;color:var(--soft)}
.set{display:grid;gap:.4rem;grid-template-columns:repeat(auto-fill,minmax(5.2rem,1fr))}
.set img,.four img{display:block;width:100%;height:auto;border-radius:.35rem}
.four{display:grid;gap:.6rem;grid-template-columns:repeat(4,1fr);margin:0 0 .3rem}
.four figure,.set figure{width:auto}
.said{margin:0 0 1.4rem;color:var(--soft)}
h1{font-size:2.2rem}
</style>"""


@dataclass(frozen=True)
class Demo:
    """Everything that is shown."""

    run: RunLog
    training: list[Path]
    """The pictures of the style."""
    captions: list[str]
    """Held out; number N is drawn in drawn/NAME_N.png."""
    drawn: Path
    measures: StyleMeasures
    trained_s: float
    all_s: float

    def picture(self, name: str, number: int) -> Path:
        """`name` is one of COLUMNS, or "untriggered_8"."""
        return self.drawn / f"{name}_{number}.png"


def write_page(demo: Demo, path: Path) -> None:
    """The page, in place of an earlier demo's."""
    html = page(
        "A style in minutes · U1 Style Studio",
        [
            STYLE,
            "<h1>A style in minutes, on a CPU</h1>",
            f"<p class=soft>{escape(_subtitle(demo))}</p>",
            _hero(demo),
            tiles(_figures(demo)),
            section("What it was shown", _training_set(demo)),
            section("What it draws from captions it has not seen", *(_row(demo, n) for n in range(len(demo.captions)))),
            section("The same without the trigger", _without_trigger(demo)),
            section("Learned or copied?", _nearest(demo)),
            section("The run", _curves(demo.run), _how(demo)),
        ],
    )
    with replacing(path, overwrite=True) as file:
        file.write(html.encode("utf-8"))


def _subtitle(demo: Demo) -> str:
    return (
        f"U1-nano, a real U1 of ten million parameters, learned this style from {len(demo.training)} pictures in "
        f"{demo.run.recipe.train.steps:,} steps and {demo.trained_s:.0f} seconds. The trigger is “{TRIGGER}”."
    )


def _figures(demo: Demo) -> dict[str, str]:
    found = demo.measures
    return {
        "of the way from the base model's pictures to the style": f"{found.style:.0%}",
        "of the way without the trigger: what leaks": f"{found.leakage:.0%}",
        "of what the captions name is in the styled pictures": f"{found.adherence:.0%}",
        "as far from its training pictures as new ones are": f"{found.novelty:.0%}",
        "for everything on this page": f"{demo.all_s:.0f} s",
    }


def _image(path: Path, words: str = "") -> str:
    under = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    return f'<figure><img src="{thumbnail(path)}" alt="{escape(words or path.stem)}">{under}</figure>'


def _hero(demo: Demo) -> str:
    base, style = (_image(demo.picture(name, 0), words) for name, words in list(COLUMNS.items())[2:])
    return f"<div class=hero>{base}<span>→</span>{style}</div><p class=said>{escape(demo.captions[0])}</p>"


def _training_set(demo: Demo) -> str:
    return f"<div class=set>{''.join(_image(path) for path in demo.training)}</div>"


def _row(demo: Demo, number: int) -> str:
    images = "".join(_image(demo.picture(name, number), words) for name, words in COLUMNS.items())
    return f"<div class=four>{images}</div><p class=said>{escape(demo.captions[number])}</p>"


def _without_trigger(demo: Demo) -> str:
    images = "".join(_image(demo.picture("untriggered_8", number)) for number in range(len(demo.captions)))
    words = "The LoRA is in effect, the trigger is not said: the pictures stay what they were."
    return f"<div class=set>{images}</div><p class=said>{words}</p>"


def _nearest(demo: Demo) -> str:
    styled = [demo.picture("style_8", number) for number in range(len(demo.captions))]
    pairs = zip(styled, nearest_files(styled, demo.training), strict=True)
    images = "".join(_image(one, "drawn") + _image(other, "nearest of the set") for one, other in pairs)
    return f"<div class=four>{images}</div>"


def _curves(run: RunLog) -> str:
    both = [("held_out", "held out"), ("training", "trained on")]
    lines = [validation_series(run, key, name) for key, name in both]
    return cards(
        card("Loss", line_chart([loss_series(run, "loss")], "step", "v-MSE", log=True), "each step has another t"),
        card(
            "Validation",
            line_chart(lines, "step", "% of base", level=100),
            "error on fixed pictures of the style, t and noise, as a share of the base model's",
        ),
    )


def _how(demo: Demo) -> str:
    recipe = escape((demo.run.folder.parent / "recipe.yaml").read_text(encoding="utf-8"))
    lora = f"{demo.run.folder.as_posix()}/{demo.run.recipe.run_name}.safetensors"
    command = escape(f'u1 sample "{TRIGGER}, {demo.captions[0]}" --model nano --lora {lora}')
    return f"<p>Draw more:</p><pre>{command}</pre><details><summary>The recipe</summary><pre>{recipe}</pre></details>"


def write_sheet(demo: Demo, path: Path) -> None:
    """A picture of base and styled pictures side by side, with the curves, in place of an earlier demo's."""
    columns = len(demo.captions)
    figure = Figure(figsize=(1.7 * columns + 4.6, 8.2), layout="constrained")
    figure.suptitle(_title(demo), fontsize=13)
    pictures, curves = figure.subfigures(1, 2, width_ratios=(1.7 * columns, 4.6))
    grid = pictures.subplots(len(COLUMNS), columns, squeeze=False)
    for line, (name, words) in zip(grid, COLUMNS.items(), strict=True):
        line[0].set_ylabel(words, fontsize=11)
        for number, axes in enumerate(line):
            axes.imshow(Image.open(demo.picture(name, number)))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    above, below = curves.subplots(2, 1)
    _plot_loss(above, demo.run)
    _plot_validation(below, demo.run)
    with replacing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=120)


def _title(demo: Demo) -> str:
    found = demo.measures
    return (
        f"U1-nano learns a style from {len(demo.training)} pictures in {demo.trained_s:.0f} s on a CPU\n"
        f"{found.style:.0%} of the way to the style, {found.leakage:.0%} without the trigger, "
        f"{found.adherence:.0%} of what captions name"
    )


def _plot_loss(axes: Axes, run: RunLog) -> None:
    series = loss_series(run, "loss")
    axes.plot(*zip(*series.faint, strict=True), linewidth=0.5, alpha=0.35)
    axes.plot(*zip(*series.points, strict=True), linewidth=2, color="C0")
    axes.set(yscale="log", xlabel="step", title="training loss (v-MSE)")


def _plot_validation(axes: Axes, run: RunLog) -> None:
    for which, name in (("held_out", "held out"), ("training", "trained on")):
        series = validation_series(run, which, name)
        axes.plot(*zip(*series.points, strict=True), marker="o", markersize=3, label=name)
    axes.axhline(100, linestyle="--", color="grey", linewidth=1)
    axes.set(xlabel="step", title="validation, % of the base model's error")
    axes.legend()
