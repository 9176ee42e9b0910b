"""Layers in host memory, ready to be copied to a device: one arena, page-locked as far as the system allows.

PyTorch's own pinned memory is rounded up to powers of two (a layer of 386 MB would take 512) and is cached when it is
freed. This is ordinary memory, registered with CUDA layer by layer once it is filled, and given back when it is closed.
"""

import contextlib
import mmap
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from u1_core.model.config import U1Config
from u1_core.model.views import LayerWeights
from u1_core.weights.layout import layer_bytes, layer_slices, layer_views
from u1_core.weights.reading import read_places
from u1_core.weights.source import TensorSource

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every CUDA context of the process


class Arena:
    """Some of a tower's layers, each in one piece as `layer_views` sees it, one after the other.

    Every layer starts on a page of its own, so that it can be page-locked by itself.
    """

    def __init__(
        self,
        config: U1Config,
        tower: str,
        layers: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        """`device` is the card that the memory is page-locked for; by default the current one."""
        self.config, self.tower, self.dtype, self._device = config, tower, dtype, device
        self._pinned: dict[int, int] = {}
        """Address of each page-locked layer."""
        self._offsets, n_bytes = {}, 0
        for index in layers:
            self._offsets[index] = n_bytes
            n_bytes += -(-self.layer_bytes(index) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = torch.empty(n_bytes + mmap.PAGESIZE, dtype=torch.uint8)
        start = -memory.data_ptr() % mmap.PAGESIZE
        self._memory: Tensor | None = memory[start : start + n_bytes]
        self._unregister = weakref.finalize(self, _unregister, self._pinned, device)

    @property
    def layers(self) -> Sequence[int]:
        """Which layers are here, in the order in which they lie."""
        return list(self._offsets)

    @property
    def n_bytes(self) -> int:
        """Size of the arena; 0 once it is closed."""
        return self._memory.nbytes if self._memory is not None else 0

    @property
    def pinned(self) -> frozenset[int]:
        """The layers that are page-locked: a device can fetch them while the host does something else."""
        return frozenset(self._pinned)

    def layer_bytes(self, index: int) -> int:
        """Bytes of one layer, whether it is here or not."""
        return layer_bytes(self.config, self.tower, index, self.dtype)

    def layer(self, index: int) -> Tensor:
        """A layer as one flat tensor of the arena's dtype, for as long as the arena is open."""
        offset = self._offsets[index]
        return self._memory[offset : offset + self.layer_bytes(index)].view(self.dtype)

    def fill(
        self,
        source: TensorSource,
        pin: bool = False,
        pin_limit_bytes: int | None = None,
        on_layer: Callable[[int], None] | None = None,
    ) -> None:
        """Read every layer straight into its place, rounding to the arena's dtype once, and page-lock it if `pin`.

        Page-locking stops at `pin_limit_bytes`, or where the system refuses more; what is left stays pageable.
        `on_layer` is told each layer's bytes as they are there.
        """
        filled_bytes, locked = 0, None
        with ThreadPoolExecutor(1, thread_name_prefix="u1-pinning") as pinner:  # one layer, while the next is read
            for index in self._offsets:
                flat = self.layer(index)
                self._read(source, index, flat)
                filled_bytes += flat.nbytes
                within = pin_limit_bytes is None or filled_bytes <= pin_limit_bytes
                pin = pin and within and (locked is None or locked.result())
                locked = pinner.submit(self.pin, index) if pin else None
                if on_layer:
                    on_layer(flat.nbytes)
        if locked:
            locked.result()

    def rewrite(self, source: TensorSource, names: Collection[str]) -> None:
        """Read the tensors of these names anew. Nothing may be under way from the memory."""
        layers = (layer_slices(self.config, self.tower, i, self.weights(i, self.layer(i))) for i in self._offsets)
        read_places(source, (each for layer in layers for each in layer if each[0] in names))

    def pin(self, index: int) -> bool:
        """Page-lock a layer; False where the system does not allow it."""
        flat = self.layer(index)
        with torch.cuda.device(self._device):
            if not _register(flat.data_ptr(), flat.nbytes):
                return False
        self._pinned[index] = flat.data_ptr()
        return True

    def close(self) -> None:
        """Unlock the memory and give it back to the system. Nothing may be under way from it any more."""
        self._unregister()
        self._memory = None

    def weights(self, index: int, flat: Tensor) -> LayerWeights:
        """A layer as the model takes it, from a copy of its bytes in `flat`, on whatever device that is."""
        return layer_views(self.config, self.tower, index, flat)

    def _read(self, source: TensorSource, index: int, flat: Tensor) -> None:
        read_places(source, layer_slices(self.config, self.tower, index, self.weights(index, flat)))


def _register(address: int, n_bytes: int) -> bool:
    """Page-lock memory, by way of the current card and no other; False where the system does not allow it."""
    torch.cuda.init()
    if int(torch.cuda.cudart().cudaHostRegister(address, n_bytes, _PORTABLE)) == 0:
        return True
    _forget_error()
    return False


def _forget_error() -> None:
    """A refusal stays on record as CUDA's last error and would be blamed on the next kernel: let it be this one."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def _unregister(pinned: dict[int, int], device: torch.device | None) -> None:
    while pinned:
        with torch.cuda.device(device):
            torch.cuda.cudart().cudaHostUnregister(pinned.popitem()[1])
