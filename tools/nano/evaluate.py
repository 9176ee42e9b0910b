"""What U1-nano can do, measured on scenes it has not seen: pictures that hold to captions, answers, captions, edits.

python -m tools.nano.evaluate MODEL --count 200 --sheet sheet.png
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from u1_core.cli.options import load_adapters
from u1_core.data.pictures import to_images
from u1_core.sample.edit import edit
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.understand.ask import ask
from u1_core.weights.download import resolve_model

from .captions import sample_pair
from .detector import load_detector, see
from .edits import edits
from .model import SIZE
from .named import Named, agreement
from .questions import questions
from .reading import read
from .render import render
from .scene import Scene
from .sheet import sheet

HELD_OUT = 900_000
"""Seeds from here on are for measuring: training scenes are numbered apart."""


def settings(steps: int, cfg: float, seed: int, image_cfg: float = 1.0) -> SampleSettings:
    return SampleSettings(SIZE, SIZE, steps, seed=seed, guidance=Guidance(cfg, image_cfg))


def draw(session: Session, captions: Iterable[str], steps: int, cfg: float) -> list[np.ndarray]:
    """A picture (H, W, 3) of each caption, each from its own seed."""
    pictures = []
    for seed, text in enumerate(captions):
        (image,) = to_images(text_to_image(session, text, settings(steps, cfg, seed)).pictures)
        pictures.append(np.asarray(image))
    return pictures


def adherence(captions: Sequence[str], pictures: Sequence[np.ndarray]) -> float:
    """The share of the attributes named in the captions that are found in their pictures."""
    found = see(load_detector(), np.stack(pictures))
    right = [ok for text, scene in zip(captions, found, strict=True) for _, ok in agreement(read(text), scene)]
    return sum(right) / len(right)


def answers(session: Session, scenes: Sequence[Scene]) -> float:
    """The share of one-word questions answered right, one question a scene."""
    right = 0
    for number, scene in enumerate(scenes):
        question, answer = random.Random(number).choice(questions(scene, random.Random(number)))
        said = "".join(ask(session, question, [Image.fromarray(render(scene, SIZE))])).strip()
        right += said == answer
    return right / len(scenes)


def described(session: Session, scenes: Sequence[Scene]) -> float:
    """The share of a scene's attributes that the model's own captions name."""
    right = []
    for scene in scenes:
        said = "".join(ask(session, "describe the picture.", [Image.fromarray(render(scene, SIZE))]))
        right += [ok for _, ok in agreement(Named.of(scene), read(said))]
    return sum(right) / len(right)


def edited(
    session: Session, scenes: Sequence[Scene], steps: int, cfg: float, image_cfg: float = 1.0
) -> tuple[float, list[np.ndarray]]:
    """The share of edits that did what was asked and kept all else, and before/after pictures."""
    detector, kept, pictures = load_detector(), 0, []
    for number, scene in enumerate(scenes):
        instruction, after = edits(scene, random.Random(number))
        before = Image.fromarray(render(scene, SIZE))
        (image,) = to_images(edit(session, instruction, [before], settings(steps, cfg, number, image_cfg)).pictures)
        pictures += [np.asarray(before), np.asarray(image)]
        (found,) = see(detector, pictures[-1][None])
        kept += all(ok for _, ok in agreement(Named.of(after), found))
    return kept / len(scenes), pictures


def main() -> None:
    args = _arguments()
    session = Session.open(resolve_model(args.model), args.device, args.dtype)
    session.use(load_adapters(args.lora))
    pairs = [sample_pair(HELD_OUT + number) for number in range(args.count)]
    scenes, captions = [scene for scene, _ in pairs], [text for _, text in pairs]
    pictures = draw(session, captions, args.steps, args.cfg)
    report = {"steps": args.steps, "cfg": args.cfg, "adherence": adherence(captions, pictures)}
    if args.sheet:
        sheet(pictures[:48], 8).save(args.sheet)
    if not args.pictures_only:
        report |= {"answers": answers(session, scenes), "described": described(session, scenes[: args.count // 2])}
        report["edits"], shown = edited(session, scenes[: args.count // 2], args.steps, args.cfg, args.image_cfg)
        if args.sheet:
            sheet(shown[:48], 8).save(args.sheet.with_stem(args.sheet.stem + "_edits"))
    print(json.dumps(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="nano, or a snapshot folder")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]")
    parser.add_argument("--count", type=int, default=200, help="held-out captions")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--image-cfg", type=float, default=1.0, help="of edits")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sheet", type=Path, help="PNG of the first pictures")
    parser.add_argument("--pictures-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
