"""What a step is computed from: turns, each a picture with all that is drawn for it, and micro-batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.data.dataset import Dataset
from u1_core.data.picture_cache import PictureCache
from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.train.order import Order
from u1_core.train.prefixes import CaptionPrefixes, move_prefix
from u1_core.train.recipe import Train
from u1_core.train.rng import WINDOW, generator, seed_for
from u1_core.train.timesteps import draw_timesteps


@dataclass(frozen=True)
class TrainingSet:
    """Samples, with their pictures and prefixes by the same number, and the order in which they have their turns."""

    samples: Dataset
    pictures: PictureCache
    prefixes: CaptionPrefixes
    order: Order

    def number_at(self, draw: int) -> int:
        """The number of the sample whose turn it is at `draw`."""
        return self.samples.turns[self.order.turn_at(draw)]

    def after(self, draw: int) -> Iterator[int]:
        """The numbers of the samples whose turns come after `draw`, as far as they are shuffled among each other."""
        return map(self.number_at, range(draw + 1, draw + WINDOW))


@dataclass(frozen=True)
class Turn:
    """One picture's turn: all that its loss depends on besides the weights. t = 1 is clean, t = 0 is noise."""

    draw: int
    sample: str
    picture: Tensor
    """(1, 3, H, W), uint8."""
    mask: Tensor | None
    """(1, H, W), uint8: how much each pixel's loss weighs; None weighs all alike."""
    z: Tensor
    """The noisy picture t * x0 + (1 - t) * noise: (1, 3, H, W), fp32."""
    t: Tensor
    """(1,), fp32."""
    prefix: PrefixKV
    dropped: str
    """Which dropout took the caption away: "text", "both", or nothing."""
    dropout_seed: int

    @property
    def bucket(self) -> str:
        return f"{self.picture.shape[3]}x{self.picture.shape[2]}"


def draw_turn(config: U1Config, train: Train, data: TrainingSet, draw: int) -> Turn:
    """The turn numbered `draw`, counted from 0 over the run, on the CPU (its prefix is where it rests).

    It depends on the seed, `draw` and the sample alone.
    """
    index = data.number_at(draw)
    sample = data.samples[index].id

    def drawn_for(purpose: str) -> torch.Generator:
        return generator(train.seed, draw, sample, purpose)

    fetched = data.pictures.fetch(index)
    data.pictures.expect(data.number_at(ahead) for ahead in range(draw + 1, draw + 1 + data.pictures.ahead))
    picture = fetched.pixels[None]
    noise = torch.randn(picture.shape, generator=drawn_for("noise"))
    noise *= config.noise_scale_for(picture.shape[2] * picture.shape[3] // config.token_pixels**2)
    t = draw_timesteps(train, 1, config.t_eps, drawn_for("t"))
    dropped = _dropout_at(train, torch.rand((), generator=drawn_for("condition")).item())
    return Turn(
        draw=draw,
        sample=sample,
        picture=picture,
        mask=None if fetched.mask is None else fetched.mask[None],
        z=torch.lerp(noise, clean(picture), t),
        t=t,
        prefix=data.prefixes.unconditional if dropped else data.prefixes.captions.fetch(index, data.after(draw)),
        dropped=dropped,
        dropout_seed=seed_for(train.seed, draw, sample, "dropout"),
    )


def clean(picture: Tensor) -> Tensor:
    """x0: a uint8 picture as fp32 in [-1, 1]."""
    return picture.float() / 127.5 - 1.0


def _dropout_at(train: Train, u: float) -> str:
    """Which dropout a number drawn uniformly from [0, 1) means."""
    if u < train.cond_dropout_text:
        return "text"
    return "both" if u < train.cond_dropout_text + train.cond_dropout_both else ""


@dataclass(frozen=True)
class MicroBatch:
    """Turns of pictures of one size, which go through the model together, on the device."""

    turns: Sequence[Turn]
    x0: Tensor
    """The clean pictures in [-1, 1]: (B, 3, H, W), fp32."""
    z: Tensor
    """The noisy ones: (B, 3, H, W), fp32."""
    t: Tensor
    """(B,), fp32."""
    weights: Tensor | None
    """The masks as fp32, (B, H, W), where any of the pictures has one."""
    prefixes: Sequence[PrefixKV]

    @classmethod
    def of(cls, turns: Sequence[Turn], device: torch.device) -> "MicroBatch":
        """Raises U1Error if the pictures are of different sizes after all."""
        _refuse_other_sizes(turns)
        moved: dict[int, KVChunk] = {}
        masks = [turn.mask for turn in turns]
        if weighed := any(mask is not None for mask in masks):
            full = torch.full_like(turns[0].picture[:, 0], 255)
            masks = [full if mask is None else mask for mask in masks]
        return cls(
            turns=turns,
            x0=clean(torch.cat([turn.picture for turn in turns]).to(device)),
            z=torch.cat([turn.z for turn in turns]).to(device),
            t=torch.cat([turn.t for turn in turns]).to(device),
            weights=torch.cat(masks).to(device).float() / 255 if weighed else None,
            prefixes=[move_prefix(turn.prefix, device, moved) for turn in turns],
        )

    @property
    def dropout_seed(self) -> int:
        """What a LoRA's dropout is drawn from, for all of them together: the first one's seed."""
        return self.turns[0].dropout_seed


def _refuse_other_sizes(turns: Sequence[Turn]) -> None:
    first = turns[0]
    for turn in turns:
        if turn.bucket != first.bucket:
            raise U1Error(
                f"{turn.sample} is trained at {turn.bucket}, and its set's width and height columns put it with "
                f"{first.sample} at {first.bucket}; pack the set anew with `u1 data pack`"
            )
