"""Trains the detector: `python -m tools.nano.train_detector whole`, and then `closer`.

Each scene is drawn once and shown as it is and mirrored: half of them in the base style, the others in the five styles
alike, and most of them damaged. What is in the repository was made by these, half an hour on two cores, when `whole`
was still shown pictures that were made smaller before they were damaged:

    python -m tools.nano.train_detector whole --batches 1000
    python -m tools.nano.train_detector whole --batches 800 --peak-rate 1.5e-3 --seed 1 --more
    python -m tools.nano.train_detector closer --batches 600
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .damage import damaged
from .detector import HEADS, UNKNOWN, WEIGHTS, Closer, Detector, Whole, load_detector, split, targets, to_tensor
from .scene import KINDS, PLACES, Scene, conflict, random_group, random_scene
from .styles import STYLES, render_styled

BATCH = 64


class Scenes(IterableDataset):
    """Batches of pictures (N, 3, 192, 192) with the indices of what is on them."""

    def __init__(self, batches: int, styled: float, seed: int):
        self.batches = batches
        self.seed = seed
        self.styled = styled

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(first, self.batches, step):
            rng = random.Random(f"detector/{self.seed}/{batch}")
            pictures, wanted = [], []
            for scene in (crowded(random_scene(rng), rng) for _ in range(BATCH // 2)):
                style = rng.choice(list(STYLES)) if rng.random() < self.styled else "base"
                picture = render_styled(scene, style)
                for shown in (picture, picture[:, ::-1]):
                    pictures.append(damaged(shown, rng) if rng.random() < 0.7 else shown)
                wanted += [targets(scene), targets(mirrored(scene))]
            yield to_tensor(np.stack(pictures)), {head: torch.stack([rows[head] for rows in wanted]) for head in HEADS}


def crowded(scene: Scene, rng: random.Random) -> Scene:
    """The scene with up to five groups, all kinds alike: more to learn from than a scene has by itself."""
    for _ in range(rng.randrange(12)):
        kind = rng.choice(KINDS)
        grown = scene.with_group(replace(random_group(rng), kind=kind))
        if len(grown.groups) <= 5 and conflict(grown) is None:
            scene = grown
    return scene


def mirrored(scene: Scene) -> Scene:
    """The scene with left and right exchanged."""
    other = dict(zip(PLACES, reversed(PLACES), strict=True))
    groups = tuple(replace(group, place=other[group.place]) for group in scene.groups)
    return replace(scene, light_place=other.get(scene.light_place), groups=groups)


def loss_of(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """The sum over attributes of the mean cross-entropy of what is there to be told."""
    losses = []
    for head in outputs:
        for at, logits in enumerate(split(head, outputs[head]).values()):
            index = wanted[head][..., at].flatten()
            losses.append(nn.functional.cross_entropy(logits.flatten(0, -2), index, ignore_index=UNKNOWN))
    return torch.stack(losses).sum()


def train(network: nn.Module, scenes: Scenes, peak_rate: float, workers: int, device: str) -> None:
    """Trains in place, for one cycle of the learning rate."""
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=scenes.batches, pct_start=0.15)
    started, running = time.monotonic(), 0.0
    loader = DataLoader(scenes, batch_size=None, num_workers=workers)
    for number, (pictures, wanted) in enumerate(loader, start=1):
        loss = loss_of(network(pictures.to(device)), {head: rows.to(device) for head, rows in wanted.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) / min(number, 50)
        if number % 50 == 0:
            print(
                f"{number:6d} of {scenes.batches}  loss {running:.3f}  {time.monotonic() - started:.0f} s", flush=True
            )
    network.cpu().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("whole", "closer"), help="the look to train; the other stays as it is")
    parser.add_argument("--batches", type=int, default=1000, help=f"of {BATCH} pictures")
    parser.add_argument("--styled", type=float, default=0.5, help="share of pictures in the five styles")
    parser.add_argument("--peak-rate", type=float, default=3e-3, help="the highest learning rate of the cycle")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, and of the first weights")
    parser.add_argument("--more", action="store_true", help="go on from the weights that it has")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    detector = load_detector() if WEIGHTS.exists() else Detector()
    if not given.more:
        setattr(detector, given.part, {"whole": Whole, "closer": Closer}[given.part]())
    scenes = Scenes(given.batches, given.styled, given.seed)
    train(getattr(detector, given.part), scenes, given.peak_rate, given.workers, given.device)
    save_file({name: tensor.half().contiguous() for name, tensor in detector.state_dict().items()}, WEIGHTS)
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
