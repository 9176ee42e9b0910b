"""Randomness without a state: whatever a step draws follows from what it is drawn for.

A generator is made for each (seed, draw, sample, purpose), on the CPU, so that the numbers are the same on any device,
and neither the order of the work, nor the number of workers, nor a resumed run can change them. A `draw` is one
picture's turn in the run, counted from 0 over all steps.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 128
"""Samples that stay neighbours however a large set is shuffled."""
WINDOW = 8 * BLOCK
"""Samples that are shuffled among each other; a set no larger than this is shuffled as a whole."""


def seed_for(seed: int, draw: int, sample: str, purpose: str) -> int:
    """A 63-bit seed for one purpose ("t", "noise", …) of one draw of the sample with that id."""
    key = f"{seed}\n{draw}\n{sample}\n{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, draw: int, sample: str, purpose: str) -> torch.Generator:
    """A CPU generator from that seed."""
    return torch.Generator().manual_seed(seed_for(seed, draw, sample, purpose))


def sample_of_draw(seed: int, draw: int, count: int, shuffle: bool) -> int:
    """Which of `count` samples has its turn at `draw`: each once in an epoch, in an order of the epoch's own.

    Beyond `WINDOW` samples an epoch is a shuffled row of blocks, and the samples of every WINDOW / BLOCK of them are
    shuffled among each other: what a stretch of the run needs lies close together in the set.
    """
    epoch, place = divmod(draw, count)
    return int(epoch_order(seed, epoch, count, shuffle)[place])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int, shuffle: bool) -> Tensor:
    """The `count` samples in the order in which an epoch takes them; see `sample_of_draw`."""
    if not shuffle:
        return torch.arange(count)
    numbers = generator(seed, epoch, "", "order")
    if count <= WINDOW:
        return torch.randperm(count, generator=numbers)
    blocks = torch.arange(count).split(BLOCK)
    row = torch.cat([blocks[i] for i in torch.randperm(len(blocks), generator=numbers).tolist()])
    return torch.cat([window[torch.randperm(len(window), generator=numbers)] for window in row.split(WINDOW)])
