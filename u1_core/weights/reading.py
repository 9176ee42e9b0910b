"""Many tensors read at once: one thread alone gets neither all that an SSD can give nor all that memory can."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from u1_core.weights.source import TensorSource

READERS = 4


def read_places(source: TensorSource, places: Iterable[tuple[str, Tensor]]) -> None:
    """Read each named tensor into its place, several at a time. Raises what the first to fail raised."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="u1-reading") as readers:
        for _ in readers.map(lambda place: source.read_into(*place), places):
            pass
