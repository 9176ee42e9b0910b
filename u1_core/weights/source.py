"""Where tensors come from."""

from typing import Protocol

from torch import Tensor

from u1_core.model.config import U1Config


class TensorSource(Protocol):
    """A model's tensors by name: a `Snapshot`, a GGUF file, or random numbers."""

    @property
    def config(self) -> U1Config: ...

    def read(self, name: str) -> Tensor:
        """One tensor, in a dtype and on a device of the source's choice."""
        ...

    def read_into(self, name: str, place: Tensor) -> None:
        """One tensor, rounded once to the dtype of `place`, wherever that is."""
        ...
