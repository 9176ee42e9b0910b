"""Whose turn it is: the order of the pictures in an epoch, and which of them make a micro-batch.

Turns are numbered over the whole run; a turn's number is its `draw` (see `rng`). An epoch gives every sample its turn
once, in an order that follows from the seed and the epoch. With `train.batch_size` above 1, a micro-batch is made of
pictures of one size: as that order goes by, pictures wait for others of their size and set out together as soon as
there are enough of them. Those still waiting at the epoch's end set out then, in smaller batches, the ones that have
waited longest first. So no picture is left out or seen twice, and neither workers nor a resumed run change anything.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from u1_core.data.buckets import Size
from u1_core.train.recipe import Train
from u1_core.train.rng import epoch_order, sample_of_draw


class Order:
    """The turns of a run, and its micro-batches, each a range of consecutive turns."""

    def __init__(self, train: Train, count: int, size_of: Callable[[int], Size]) -> None:
        """`count` turns make an epoch; `size_of` tells the size of a turn's picture by its place in the unshuffled
        order, and is asked only where it matters.
        """
        self._seed, self._shuffle = train.seed, train.shuffle
        self._count, self._batch_size = count, train.batch_size
        if self._batch_size > 1:
            numbers: dict[Size, int] = {}
            self._buckets = torch.tensor([numbers.setdefault(size_of(place), len(numbers)) for place in range(count)])
            # However the turns are ordered, this many batches come of them.
            self._batches = -(-torch.bincount(self._buckets) // self._batch_size).sum().item()
            self._epoch = lru_cache(maxsize=2)(self._grouped)

    def turn_at(self, draw: int) -> int:
        """Which of an epoch's turns is taken at `draw`, by its place in the unshuffled order."""
        if self._batch_size == 1:
            return sample_of_draw(self._seed, draw, self._count, self._shuffle)
        epoch, place = divmod(draw, self._count)
        return int(self._epoch(epoch)[0][place])

    def draws(self, batch: int) -> range:
        """The draws that make the run's micro-batch of this number, counted from 0."""
        if self._batch_size == 1:
            return range(batch, batch + 1)
        epoch, place = divmod(batch, self._batches)
        first, starts = epoch * self._count, self._epoch(epoch)[1]
        return range(first + starts[place], first + starts[place + 1])

    def _grouped(self, epoch: int) -> tuple[Tensor, list[int]]:
        """An epoch's turns batch by batch, and where in them each batch starts, with their number at the end."""
        order, size = epoch_order(self._seed, epoch, self._count, self._shuffle), self._batch_size
        buckets = self._buckets[order]
        places = torch.argsort(buckets, stable=True)  # size by size, each size's in the epoch's order
        of_size = torch.bincount(buckets)
        rank = torch.arange(self._count) - (of_size.cumsum(0) - of_size).repeat_interleave(of_size)
        batch = (rank % size == 0).cumsum(0) - 1
        lengths = torch.bincount(batch)
        ends = lengths.cumsum(0)
        sets_out = torch.where(lengths == size, places[ends - 1], self._count + places[ends - lengths])
        row = torch.argsort(sets_out)
        turns = order[places[torch.argsort(torch.argsort(row)[batch], stable=True)]]
        return turns, [0, *lengths[row].cumsum(0).tolist()]
