"""What a step is computed from: turns, each a picture with all that is drawn for it, and micro-batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
    held_out: Sequence[int] = ()
    """Numbers of samples that have no turn, so that validation may look at them."""

    def number_at(self, draw: int) -> int:
        """The number of the sample whose turn it is at `draw`."""
        return self.samples.turns[self.order.turn_at(draw)]

    def after(self, draw: int) -> Iterator[int]:
        """The numbers of the samples whose turns come after `draw`, as far as they are shuffled among each other."""
        return map(self.number_at, range(draw + 1, draw + WINDOW))

    def prefix_of(self, turn: "Turn") -> PrefixKV:
        """What the turn's picture is seen with, where it rests. It may have to be built first."""
        if turn.dropped:
            return self.prefixes.unconditional
        return self.prefixes.captions.fetch(turn.number, self.after(turn.draw))


@dataclass(frozen=True)
class Turn:
    """One picture's turn: all that its loss depends on besides weights and prefix. t = 1 is clean, t = 0 is noise."""

    draw: int
    number: int
    """The sample's."""
    sample: str
    picture: Tensor
    """(1, 3, H, W), uint8."""
    mask: Tensor | None
    """(1, H, W), uint8: how much each pixel's loss weighs; None weighs all alike."""
    z: Tensor
    """The noisy picture t * x0 + (1 - t) * noise: (1, 3, H, W), fp32."""
    t: Tensor
    """(1,), fp32."""
    dropped: str
    """Which dropout took the caption away: "text", "both", or nothing."""
    dropout_seed: int

    @property
    def bucket(self) -> str:
        return f"{self.picture.shape[3]}x{self.picture.shape[2]}"


def draw_turn(config: U1Config, train: Train, data: TrainingSet, draw: int) -> Turn:
    """The turn numbered `draw`, counted from 0 over the run, on the CPU.

    It depends on the seed, `draw` and the sample alone. Any thread may draw, one at a time.
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
        number=index,
        sample=sample,
        picture=picture,
        mask=None if fetched.mask is None else fetched.mask[None],
        z=torch.lerp(noise, clean(picture), t),
        t=t,
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
    """Turns of pictures of one size, which go through the model together."""

    turns: Sequence[Turn]
    pictures: Tensor
    """(B, 3, H, W), uint8."""
    z: Tensor
    """The noisy pictures: (B, 3, H, W), fp32."""
    t: Tensor
    """(B,), fp32."""
    masks: Tensor | None
    """(B, H, W), uint8, where any of the pictures has one."""
    prefixes: Sequence[PrefixKV] = ()
    """One for each picture, once it is on the device."""

    @classmethod
    def of(cls, turns: Sequence[Turn], pin: bool = False) -> "MicroBatch":
        """On the CPU; with `pin` page-locked if it may be. Raises U1Error if the pictures are of different sizes."""
        _refuse_other_sizes(turns)
        masks = [turn.mask for turn in turns]
        if weighed := any(mask is not None for mask in masks):
            full = torch.full_like(turns[0].picture[:, 0], 255)
            masks = [full if mask is None else mask for mask in masks]

        def joined(tensors: Sequence[Tensor]) -> Tensor:
            whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            return _pinned(whole) if pin else whole

        return cls(
            turns=turns,
            pictures=joined([turn.picture for turn in turns]),
            z=joined([turn.z for turn in turns]),
            t=joined([turn.t for turn in turns]),
            masks=joined(masks) if weighed else None,
        )

    def to(self, device: torch.device, prefixes: Sequence[PrefixKV]) -> "MicroBatch":
        """There, with the prefixes of its pictures. The host does not wait for what is page-locked."""
        chunks: dict[int, KVChunk] = {}
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("pictures", "z", "t")}
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return replace(self, **moved, masks=masks, prefixes=[move_prefix(each, device, chunks) for each in prefixes])

    @cached_property
    def x0(self) -> Tensor:
        """The clean pictures in [-1, 1]: (B, 3, H, W), fp32."""
        return clean(self.pictures)

    @cached_property
    def weights(self) -> Tensor | None:
        """The masks as fp32, (B, H, W)."""
        return None if self.masks is None else self.masks.float() / 255

    @property
    def dropout_seed(self) -> int:
        """What a LoRA's dropout is drawn from, for all of them together: the first one's seed."""
        return self.turns[0].dropout_seed


def _pinned(tensor: Tensor) -> Tensor:
    """In page-locked memory; as it is, which costs time only, where the system has no more of that to give."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor


def _refuse_other_sizes(turns: Sequence[Turn]) -> None:
    first = turns[0]
    for turn in turns:
        if turn.bucket != first.bucket:
            raise U1Error(
                f"{turn.sample} is trained at {turn.bucket}, and its set's width and height columns put it with "
                f"{first.sample} at {first.bucket}; pack the set anew with `u1 data pack`"
            )
