"""Device memory given back for a while: what lies there is moved to host memory, and later back to where it was.

Whole storages are moved, so that every tensor that looks at one stays what it is: weights, views of them, a ring's
slots. While they are away nothing may compute with them; see `Lease.ready`.
"""

import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from u1_core.session import Session

HERE = __name__.partition(".")[0] + "."


class Parking:
    """For what one session holds on its device: towers, slots, LoRAs in use. It does not keep the session alive."""

    def __init__(self, session: Session) -> None:
        self._session_ref = weakref.ref(session)
        self._parked: list[tuple[UntypedStorage, UntypedStorage]] = []

    @property
    def device_bytes(self) -> int:
        """Bytes that lie on the device now."""
        return sum(storage.nbytes() for storage in self._on_device())

    @property
    def parked_bytes(self) -> int:
        """Bytes that wait in host memory."""
        return sum(host.nbytes() for _, host in self._parked)

    def park(self, wanted_bytes: float) -> int:
        """Give back at least so many bytes of the device, if there are as many. Waits for whoever holds the lease.

        Returns the bytes given back.
        """
        freed = 0
        with self._session.lease.as_it_is():
            self._wait_for_device()
            for storage in self._on_device():
                if freed >= wanted_bytes:
                    break
                host = UntypedStorage(storage.nbytes())
                host.copy_(storage)
                storage.resize_(0)
                self._parked.append((storage, host))
                freed += host.nbytes()
        return freed

    def bring_back(self) -> None:
        """Bring everything back. What the device has no room for stays parked, and its error is raised."""
        if not self._parked:
            return
        with self._session.lease.as_it_is():
            while self._parked:
                storage, host = self._parked[-1]
                storage.resize_(host.nbytes())
                storage.copy_(host)
                self._parked.pop()

    def forget(self) -> None:
        """Let go of what waits in host memory: nobody is going to use this session any more."""
        self._parked.clear()

    @property
    def _session(self) -> Session | None:
        return self._session_ref()

    def _on_device(self) -> list[UntypedStorage]:
        """Each once. Memory that is not the allocator's own, as of a mapped file, cannot be given back."""
        session, found = self._session, {}
        for tensor in tensors_in(session):
            device = session.device
            if tensor.device.type == device.type and device.index in (None, tensor.device.index):
                storage = tensor.untyped_storage()
                if storage.nbytes() and storage.resizable():
                    found.setdefault(storage.data_ptr(), storage)
        return list(found.values())

    def _wait_for_device(self) -> None:
        # Layers may be on their way into the slots on a stream of their own.
        if self._session.device.type == "cuda":
            torch.cuda.synchronize(self._session.device)


def tensors_in(thing: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that an object of this package holds, in its attributes and in mappings and sequences there."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    if type(thing).__module__.startswith(HERE):
        names = [*getattr(thing, "__dict__", ()), *(name for kind in type(thing).__mro__ for name in _slots(kind))]
        inner = [getattr(thing, name) for name in names if hasattr(thing, name)]
    elif isinstance(thing, Mapping):
        inner = list(thing.values())
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        inner = list(thing)
    else:
        return
    for one in inner:
        yield from tensors_in(one, seen)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
