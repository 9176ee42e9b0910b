"""Says what is in a picture: small networks that read the attributes of a scene off the picture alone.

It is the judge of *adherence*: which of the attributes that a caption names can be seen. It looks at a picture as the
scenes are built: two layers (sky and ground) of three places, each with nothing or one group, and what is behind them.
It looks twice, with two networks: at the whole at half the size, for everything; and closer at each place on the
ground, for the kind of what stands there, because small circles and squares differ in few pixels.
`train_detector.py` trains both on rendered scenes, whole and damaged, in the base style and in the others.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from .render import SIZE
from .scene import COLOURS, GROUNDS, HIGH_KINDS, LANDS, LOW_KINDS, PLACES, SIZES, SKIES, WATERS, Group, Scene

WEIGHTS = Path(__file__).with_name("detector.safetensors")

BACKDROP: dict[str, tuple] = {
    "sky": SKIES,
    "clouds": (False, True),
    "land": (None, *LANDS),
    "land_colour": tuple(dict.fromkeys(colour for colours in LANDS.values() for colour in colours)),
    "ground": GROUNDS,
    "water": (None, *WATERS),
}
"""Attribute of the scene -> its values, in the order of the network's outputs."""
LIGHTS = ("sun", "moon")
GROUP: dict[str, tuple] = {"colour": COLOURS, "size": SIZES, "count": (1, 2, 3)}
HIGH: dict[str, tuple] = {"kind": (None, *HIGH_KINDS, *LIGHTS), **GROUP}
LOW: dict[str, tuple] = {"kind": (None, *LOW_KINDS), **GROUP}
"""Attribute of what is at a place of the sky (where sun and moon count as kinds) or of the ground -> its values."""
CLOSER: dict[str, tuple] = {"closer kind": LOW_KINDS}
HEADS = {"backdrop": BACKDROP, "high": HIGH, "low": LOW, "closer": CLOSER}
UNKNOWN = -1


class Whole(nn.Module):
    """Convolutions to a grid of 12 by 12, then one reader for the backdrop and one per layer, shared by its places."""

    def __init__(self, features: int = 32, hidden: int = 96):
        super().__init__()
        self.grid = nn.Sequential(
            *_stage(3, 16, kernel=3, stride=1),
            *_stage(16, 40, kernel=3, stride=2),
            *_stage(40, 64, kernel=3, stride=2),
            *_stage(64, 96, kernel=3, stride=2),
            *_stage(96, 96, kernel=3, stride=1),
            nn.Conv2d(96, features, 1),
        )
        self.backdrop = _reader(12 * 3 * features, hidden, BACKDROP)
        self.high = _reader(6 * 4 * features, hidden, HIGH)
        self.low = _reader(6 * 4 * features, hidden, LOW)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, 192, 192) -> logits: "backdrop" (N, outputs), "high" and "low" (N, 3, outputs)."""
        grid = self.grid(nn.functional.avg_pool2d(pictures, 2))
        thirds = nn.functional.avg_pool2d(grid, (1, 4))
        places = grid.unflatten(3, (3, 4)).permute(0, 3, 1, 2, 4)
        return {
            "backdrop": self.backdrop(thirds.flatten(1)),
            "high": self.high(places[:, :, :, :6].flatten(2)),
            "low": self.low(places[:, :, :, 6:].flatten(2)),
        }


class Closer(nn.Module):
    """Convolutions over the 96 by 64 pixels of a place on the ground, and the strongest of each feature anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_stage(3, 16, kernel=5, stride=2),
            *_stage(16, 32, kernel=3, stride=2),
            *_stage(32, 64, kernel=3, stride=2),
            *_stage(64, 64, kernel=3, stride=1),
        )
        self.kind = nn.Linear(64, len(LOW_KINDS))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, 192, 192) -> logits: "closer" (N, 3, kinds)."""
        places = pictures[:, :, SIZE // 2 :].unflatten(3, (3, SIZE // 3)).permute(0, 3, 1, 2, 4)
        return {"closer": self.kind(self.features(places.flatten(0, 1)).amax((2, 3))).unflatten(0, (-1, 3))}


class Detector(nn.Module):
    """Both looks. Whether there is anything at a place the first look says, what kind of thing it is, the second."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = Whole()
        self.closer = Closer()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, 192, 192) of -1 to 1 -> head -> logits."""
        return self.whole(pictures) | self.closer(pictures)


def _stage(channels_in: int, channels_out: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()


def _reader(inputs: int, hidden: int, attributes: dict[str, tuple]) -> nn.Module:
    outputs = sum(len(values) for values in attributes.values())
    return nn.Sequential(nn.ReLU(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def split(head: str, logits: Tensor) -> dict[str, Tensor]:
    """The logits (..., outputs) of a head, by attribute."""
    attributes = HEADS[head]
    parts = logits.split([len(values) for values in attributes.values()], dim=-1)
    return dict(zip(attributes, parts, strict=True))


def load_detector() -> Detector:
    """The trained one, in float32 on the CPU."""
    detector = Detector()
    detector.load_state_dict(load_file(WEIGHTS))
    return detector.eval()


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, 192, 192) of -1 to 1; other sizes are resampled."""
    if pictures.shape[1:3] != (SIZE, SIZE):
        images = (Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for picture in pictures)
        pictures = np.stack([np.asarray(image) for image in images])
    return torch.tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def see(detector: Detector, pictures: np.ndarray) -> list[Scene]:
    """The scene in each picture of uint8 (N, H, W, 3), as far as a picture shows it: its seed is always 0."""
    scenes: list[Scene] = []
    for first in range(0, len(pictures), 64):
        outputs = detector(to_tensor(pictures[first : first + 64]))
        best = {
            head: {name: logits.argmax(-1).tolist() for name, logits in split(head, outputs[head]).items()}
            for head in HEADS
        }
        lights = split("high", outputs["high"])["kind"][..., -len(LIGHTS) :].tolist()
        scenes += [_scene(best, lights[row], row) for row in range(len(outputs["backdrop"]))]
    return scenes


def _scene(best: dict, lights: list, row: int) -> Scene:
    """`best`: head -> attribute -> the index of its likeliest value per picture (and place)."""
    values = {name: options[best["backdrop"][name][row]] for name, options in BACKDROP.items()}
    if values["land"] is None:
        values["land_colour"] = None
    if values["sky"] == "overcast":
        values["clouds"] = False
    groups, shining = [], []
    for head, attributes in (("high", HIGH), ("low", LOW)):
        for at, place in enumerate(PLACES):
            seen = {name: options[best[head][name][row][at]] for name, options in attributes.items()}
            if head == "low" and seen["kind"] is not None:
                seen["kind"] = LOW_KINDS[best["closer"]["closer kind"][row][at]]
            if seen["kind"] in LIGHTS:
                shining.append((max(lights[at]), seen["kind"], place))
            elif seen["kind"] is not None:
                groups.append(Group(place=place, **seen))
    _, light, light_place = max(shining, default=(0, None, None))
    return Scene(seed=0, light=light, light_place=light_place, groups=tuple(groups), **values)


def targets(scene: Scene) -> dict[str, Tensor]:
    """What the networks should say of a scene: head -> the index of each attribute's value, (attributes,) for the
    backdrop and (3, attributes) for the places; UNKNOWN where there is nothing to say."""
    layers = {head: [[0, UNKNOWN, UNKNOWN, UNKNOWN] for _ in PLACES] for head in ("high", "low")}
    for group in scene.groups:
        head = "high" if group.high else "low"
        row = [options.index(getattr(group, name)) for name, options in HEADS[head].items()]
        layers[head][PLACES.index(group.place)] = row
    if scene.light:
        layers["high"][PLACES.index(scene.light_place)][0] = HIGH["kind"].index(scene.light)
    backdrop = []
    for name, options in BACKDROP.items():
        value = getattr(scene, name)
        silent = (name == "clouds" and scene.sky == "overcast") or (name == "land_colour" and scene.land is None)
        backdrop.append(UNKNOWN if silent else options.index(value))
    layers["closer"] = [[kind - 1 if kind > 0 else UNKNOWN] for kind, *_ in layers["low"]]
    return {"backdrop": torch.tensor(backdrop), **{head: torch.tensor(rows) for head, rows in layers.items()}}
