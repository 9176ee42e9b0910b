"""Many tensors read at once."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from u1_core.weights.read_ahead import READERS
from u1_core.weights.source import TensorSource


def read_places(source: TensorSource, places: Iterable[tuple[str, Tensor]]) -> None:
    """Read each named tensor into its place, several at a time. Raises what the first to fail raised.

    What is copied to a card is ordered with the work of the stream that is current here.
    """
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def read(place: tuple[str, Tensor]) -> None:
        with torch.cuda.stream(stream):
            source.read_into(*place)

    with ThreadPoolExecutor(READERS, thread_name_prefix="u1-reading") as readers:
        for _ in readers.map(read, places):
            pass
