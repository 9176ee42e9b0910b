"""Copies from host memory into a ring's slots: on a CUDA card beside the computing, on a CPU at once."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

STAGE_BYTES = 32 * 2**20
"""Each of the two page-locked buffers through which pageable memory goes."""


@dataclass(eq=False)
class Slot:
    """A place on the device for one layer at a time."""

    flat: Tensor
    layer: int | None = None
    """The layer that is in it or on its way."""
    ready: Any = None
    """CUDA event: the layer has arrived."""
    free: dict[Any, Any] = field(default_factory=dict)
    """CUDA event of each stream that has computed with the slot's last layer: that is done."""
    users: set[Any] = field(default_factory=set)
    """CUDA streams that compute with the layer now."""
    staging: Future | None = None
    """The worker's part of the copy, if there is one."""


class Copies(Protocol):
    """How layers get into slots. For each layer: `start`, then `wait` before it is used, then `release`."""

    def start(self, slot: Slot, host: Tensor, pinned: bool) -> None:
        """Begin to copy `host` into the slot, once nothing computes with what is there."""

    def wait(self, slot: Slot) -> None:
        """Whatever is computed from now on finds the slot's layer there; if that failed, the slot has no layer."""

    def release(self, slot: Slot) -> None:
        """What has been asked of the device so far is the last that needs the slot's layer."""

    def close(self) -> None:
        """Wait until nothing is under way. More may be started afterwards."""


class PlainCopies:
    """On a CPU nothing happens beside anything else."""

    def start(self, slot: Slot, host: Tensor, pinned: bool) -> None:
        slot.flat[: len(host)].copy_(host)

    def wait(self, slot: Slot) -> None:
        pass

    def release(self, slot: Slot) -> None:
        pass

    def close(self) -> None:
        pass


class CudaCopies:
    """Copies on a stream of their own, ordered with the computing by events: the host never waits for the card.

    Memory that is not page-locked is copied by a worker thread through two small buffers that are; then the host does
    wait, until the worker has passed on the last piece.
    """

    def __init__(self, device: torch.device, slots: Sequence[Slot]) -> None:
        """`slots` have just been allocated on the current stream, and are used by none yet."""
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._stage: _Stage | None = None
        for slot in slots:
            slot.ready = torch.cuda.Event()
            # The allocator, whichever it is, must not give the memory away while a copy into it is under way.
            slot.flat.record_stream(self._stream)

    def start(self, slot: Slot, host: Tensor, pinned: bool) -> None:
        self._settle(slot)
        for event in slot.free.values():
            self._stream.wait_event(event)
        slot.free.clear()
        if pinned:
            with torch.cuda.stream(self._stream):
                slot.flat[: len(host)].copy_(host, non_blocking=True)
            slot.ready.record(self._stream)
        else:
            self._stage = self._stage or _Stage(self._device, self._stream)
            slot.staging = self._stage.submit(slot, host)

    def wait(self, slot: Slot) -> None:
        self._settle(slot)
        user = torch.cuda.current_stream(self._device)
        user.wait_event(slot.ready)
        slot.users.add(user)

    def release(self, slot: Slot) -> None:
        # A layer may be lent several times before another comes, each time to another stream.
        slot.free |= {user: user.record_event() for user in slot.users}
        slot.users.clear()

    def close(self) -> None:
        stage, self._stage = self._stage, None
        if stage:
            stage.close()
        self._stream.synchronize()

    def _settle(self, slot: Slot) -> None:
        """Wait until the worker has handed the slot's copy to the card, raising what went wrong there."""
        staging, slot.staging = slot.staging, None
        if staging and staging.exception():
            slot.layer = None
            raise staging.exception()


class _Stage:
    """A thread that feeds a copy stream from pageable memory through two page-locked buffers."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = device, stream
        self._buffers = [torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._taken = [torch.cuda.Event() for _ in range(2)]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="u1-staging")

    def submit(self, slot: Slot, host: Tensor) -> Future:
        return self._worker.submit(self._copy, slot, host)

    def close(self) -> None:
        self._worker.shutdown()

    def _copy(self, slot: Slot, host: Tensor) -> None:
        source, target = host.view(torch.uint8), slot.flat.view(torch.uint8)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for number, start in enumerate(range(0, len(source), STAGE_BYTES)):
                piece, buffer, taken = (
                    source[start : start + STAGE_BYTES],
                    self._buffers[number % 2],
                    self._taken[number % 2],
                )
                taken.synchronize()
                buffer[: len(piece)].copy_(piece)
                target[start : start + len(piece)].copy_(buffer[: len(piece)], non_blocking=True)
                taken.record(self._stream)
            slot.ready.record(self._stream)
