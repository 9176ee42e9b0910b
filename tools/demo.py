"""A style LoRA from nothing but this checkout, in a few minutes on two CPU cores: `make demo`, `python -m tools.demo`.

U1-nano, the small U1 that ships with the package, learns a style from 24 pictures with `u1 train`, and draws captions
that it has not seen with and without the style, in 50 and in 8 steps. What comes out is a page, demo/index.html, and a
picture of it all, demo/demo.png. The run itself, its set and its pictures lie in a new folder beside them.
"""

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from tools.demo_page import BASE, FAST, STYLED, Demo, write_page, write_sheet
from tools.nano.evaluate import draw
from tools.nano.style_measures import StyleMeasures, draw_all, held_out_captions, measure
from tools.nano.style_run import STEPS, STYLE, TRIGGER, eight_step, set_pairs, train_style, write_set
from u1_core.lora.files import read_lora
from u1_core.session import Session
from u1_core.train.run_log import RunLog, read_run
from u1_core.weights.download import resolve_model

SHOWN, MEASURED = 6, 16
"""Held-out captions on the page, the first of those that are measured in eight steps."""
GOAL = 0.6
"""The last tenth's mean loss is to be at most this share of the first tenth's."""
GOALS = {"style": (0.6, 1.0), "leakage": (-1.0, 0.25), "adherence": (0.8, 1.0)}
"""Measure -> the lowest and the highest that it is to be."""


def main(root: Path = Path("demo"), steps: int = STEPS, shown: int = SHOWN, measured: int = MEASURED) -> int:
    """Run it all and say where things are. Exit status 1 if the loss or a measure misses its goal."""
    started = time.monotonic()
    out = new_folder(root)
    session = Session.open(resolve_model("nano"), device="cpu")
    pairs = set_pairs(seed=0)
    training = write_set(out / "pictures", session, STYLE, pairs)
    print(f"in {out}: {len(training)} pictures in {STYLE}, and as many that the model drew from the same captions")
    print(f"$ u1 train {out / 'recipe.yaml'}", flush=True)
    begun = time.monotonic()
    run = read_run(train_style(out, STYLE, out / "pictures", TRIGGER, seed=0, steps=steps))
    trained_s = time.monotonic() - begun
    captions = held_out_captions(measured)
    pictures, found = draw_and_measure(session, run, captions, training, shown)
    save_pictures(pictures, out / "drawn")
    demo = Demo(
        run=run,
        training=sorted((out / "pictures" / STYLE).glob("*.png")),
        captions=captions[:shown],
        drawn=out / "drawn",
        measures=found,
        trained_s=trained_s,
        all_s=time.monotonic() - started,
    )
    write_page(demo, root / "index.html")
    write_sheet(demo, root / "demo.png")
    reached = tell(run, found)
    print(f"{time.monotonic() - started:.0f} s in all, {trained_s:.0f} s of it training")
    for path in (root / "index.html", root / "demo.png", run.folder / f"{STYLE}.safetensors"):
        print(path.resolve())
    return 0 if reached else 1


def new_folder(root: Path) -> Path:
    """The first of root/1, root/2, … that does not exist yet, made."""
    number = 1
    while (root / str(number)).exists():
        number += 1
    (root / str(number)).mkdir(parents=True)
    return root / str(number)


def draw_and_measure(
    session: Session, run: RunLog, captions: list[str], training: list[np.ndarray], shown: int
) -> tuple[dict[str, list[np.ndarray]], StyleMeasures]:
    """Pictures of the first `shown` captions by what they are, and the measures of all captions in eight steps."""
    style, fast = read_lora(run.folder / f"{STYLE}.safetensors").adapter, eight_step()
    eight = draw_all(session, [style], TRIGGER, captions, *FAST, fast=[fast])
    pictures = {"base_8": eight.base, "style_8": eight.styled, "untriggered_8": eight.untriggered}
    pictures["base_50"] = draw(session, captions[:shown], *BASE)
    session.use([style])
    pictures["style_50"] = draw(session, [f"{TRIGGER}, {caption}" for caption in captions[:shown]], *STYLED)
    found = measure(eight, captions, STYLE, training)
    return {name: drawn[:shown] for name, drawn in pictures.items()}, found


def save_pictures(pictures: dict[str, list[np.ndarray]], folder: Path) -> None:
    """As FOLDER/NAME_NUMBER.png."""
    folder.mkdir()
    for name, drawn in pictures.items():
        for number, picture in enumerate(drawn):
            Image.fromarray(picture).save(folder / f"{name}_{number}.png")


def first_and_last_tenth(losses: list[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    return fmean(losses[:tenth]), fmean(losses[-tenth:])


def tell(run: RunLog, found: StyleMeasures) -> bool:
    """Print the loss and the measures beside their goals. Returns whether all are reached."""
    losses = [value for _, value in run.curve("loss")]
    first, last = first_and_last_tenth(losses)
    reached = last <= GOAL * first
    print(f"training loss: {first:.4f} over the first tenth of {len(losses)} steps, {last:.4f} over the last tenth")
    print(f"ratio {last / first:.3f}, to be at most {GOAL}: {'reached' if reached else 'MISSED'}")
    for name, value in asdict(found).items():
        if name in GOALS:
            low, high = GOALS[name]
            goal = f"at most {high:.0%}" if low < 0 else f"at least {low:.0%}"
            reached &= low <= value <= high
            print(f"{name} {value:.0%}, to be {goal}: {'reached' if low <= value <= high else 'MISSED'}")
        else:
            print(f"{name} {value:.0%}")
    return reached


if __name__ == "__main__":
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
