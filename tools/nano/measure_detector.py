"""How right the detector is on scenes that it was not trained on: `python -m tools.nano.measure_detector`.

Per attribute, the share that it reads right: on the base style, on the base style damaged, and on each other style. And
how often it sees what is not there: groups at empty places, and false statements about the picture that it affirms.
"""

import argparse
import random
from collections import defaultdict

import numpy as np

from .damage import damaged
from .detector import Detector, load_detector, see
from .named import Named, agreement
from .scene import PLACES, Scene, random_scene
from .styles import STYLES, render_styled


def held_out_scenes(count: int) -> list[Scene]:
    """Scenes from seeds of their own."""
    return [random_scene(random.Random(f"held out/{number}")) for number in range(count)]


def accuracies(truth: list[Scene], seen: list[Scene]) -> dict[str, float]:
    """Attribute (those of groups for all kinds together) -> the share of it that was read right, and "all"."""
    verdicts = defaultdict(list)
    for scene, found in zip(truth, seen, strict=True):
        for name, holds in agreement(Named.of(scene), found):
            verdicts[name.split()[-1]].append(holds)
    verdicts["all"] = [holds for found in verdicts.values() for holds in found]
    return {name: sum(holds) / len(holds) for name, holds in verdicts.items()}


def false_alarms(truth: list[Scene], seen: list[Scene]) -> dict[str, float]:
    """The share of empty places at which a group was seen, and of absent suns, moons, lands and waters seen."""
    places, others = [], []
    for scene, found in zip(truth, seen, strict=True):
        taken = {(group.high, group.place) for group in scene.groups}
        claimed = {(group.high, group.place) for group in found.groups}
        places += [at in claimed for high in (True, False) for place in PLACES if (at := (high, place)) not in taken]
        others += [
            getattr(found, name) is not None for name in ("light", "land", "water") if getattr(scene, name) is None
        ]
    return {"groups": sum(places) / len(places), "sun, moon, land, water": sum(others) / len(others)}


def false_statements(truth: list[Scene], seen: list[Scene]) -> float:
    """The share of attributes, named for another scene and not true of this one, that are affirmed of this one."""
    affirmed = []
    for scene, found, other in zip(truth, seen, truth[1:] + truth[:1], strict=True):
        named = Named.of(other)
        pairs = zip(agreement(named, scene), agreement(named, found), strict=True)
        affirmed += [holds for (_, is_true), (_, holds) in pairs if not is_true]
    return sum(affirmed) / len(affirmed)


def measure(detector: Detector, scenes: list[Scene], style: str, harm: bool) -> dict[str, object]:
    """All measures for the scenes in a style, damaged or not."""
    pictures = [render_styled(scene, style) for scene in scenes]
    if harm:
        pictures = [damaged(picture, random.Random(f"damage/{at}")) for at, picture in enumerate(pictures)]
    seen = see(detector, np.stack(pictures))
    return {
        "accuracy": accuracies(scenes, seen),
        "false alarms": false_alarms(scenes, seen),
        "false statements": false_statements(scenes, seen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--styled-scenes", type=int, default=250)
    given = parser.parse_args()
    detector, scenes = load_detector(), held_out_scenes(given.scenes)
    report = {
        "base": measure(detector, scenes, "base", harm=False),
        "base, damaged": measure(detector, scenes, "base", harm=True),
    }
    for style in STYLES:
        report[style] = measure(detector, scenes[: given.styled_scenes], style, harm=False)
    print_report(report)


def print_report(report: dict[str, dict]) -> None:
    """One line per attribute, one column per kind of picture, in percent."""
    print(f"{'':24s}" + "".join(f"{title:>15s}" for title in report))
    for name in next(iter(report.values()))["accuracy"]:
        print(
            f"{name:24s}" + "".join(f"{100 * found['accuracy'].get(name, np.nan):15.2f}" for found in report.values())
        )
    for name in ("groups", "sun, moon, land, water"):
        print(f"false {name:18s}" + "".join(f"{100 * found['false alarms'][name]:15.2f}" for found in report.values()))
    print(
        f"{'false statements':24s}" + "".join(f"{100 * found['false statements']:15.2f}" for found in report.values())
    )


if __name__ == "__main__":
    main()
