"""LoRAs folded into the weights of a model that is open: what `u1 lora merge` writes in their dtype, without the file.

A folded weight is made from the checkpoint's own each time and never from what is in memory. So nothing adds up, and
taking the LoRAs out brings back the checkpoint's bytes.
"""

import threading
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.full import refuse_twice
from u1_core.lora.merge import merged_tensor, rounded
from u1_core.model.config import EMBED_TOKENS, LM_HEAD, U1Config
from u1_core.weights.snapshot import Snapshot


class FoldedSource:
    """Stands where a `Snapshot` does: its tensors with LoRAs added to them as they are read."""

    def __init__(self, snapshot: Snapshot, adapters: Sequence[Adapter]) -> None:
        """Raises U1Error for a LoRA that does not fit, or changes what is not read by way of `read_into`."""
        refuse_twice(adapters)
        for adapter in adapters:
            adapter.check(snapshot.config, live=False)
            for name in (EMBED_TOKENS, LM_HEAD):
                if name in adapter.full:
                    raise U1Error(
                        f"{adapter.name}: {name} cannot be changed in a model that is open; write a merged model with "
                        "`u1 lora merge` and use that"
                    )
        self._snapshot = snapshot
        self._summing = threading.Lock()
        self.adapters = tuple(adapters)

    @property
    def config(self) -> U1Config:
        return self._snapshot.config

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the tensors that are not the checkpoint's own."""
        strong = [adapter for adapter in self.adapters if adapter.strength]
        return frozenset(name for each in strong for name in (*each.full, *(f"{path}.weight" for path in each.modules)))

    def read(self, name: str) -> Tensor:
        """One tensor that no LoRA changes, as it is stored."""
        return self._snapshot.read(name)

    @torch.no_grad()
    def read_into(self, name: str, place: Tensor) -> None:
        """One tensor, summed in fp32 on the CPU as `u1 lora merge` does and rounded once to the dtype of `place`.

        Several threads may ask, one at a time sums: that takes all cores, and five times the memory of the tensor.
        """
        if name not in self.changed:
            self._snapshot.read_into(name, place)
            return
        entry = self._snapshot.tensors[name]
        base = torch.empty(entry.shape, dtype=entry.dtype)
        self._snapshot.read_into(name, base)
        with self._summing:
            place.copy_(rounded(name, merged_tensor(name, base, self.adapters), place.dtype))
