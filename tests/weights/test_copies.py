"""What a copy to a card waits for, with stand-ins for its streams."""

from contextlib import nullcontext

import pytest
import torch

from u1_core.weights.copies import CudaCopies, Slot


class Stream:
    def __init__(self, name: str) -> None:
        self.name, self.events, self.waited = name, 0, []

    def wait_stream(self, other: "Stream") -> None:
        pass

    def wait_event(self, event: str) -> None:
        self.waited.append(event)

    def record_event(self) -> str:
        self.events += 1
        return f"{self.name} {self.events}"


class Flat:
    """Memory that nothing is really copied into."""

    def record_stream(self, stream: Stream) -> None:
        pass

    def __getitem__(self, piece: slice) -> "Flat":
        return self

    def copy_(self, host: list[int], non_blocking: bool) -> None:
        pass


class Event:
    def record(self, stream: Stream) -> None:
        pass


@pytest.fixture
def card(monkeypatch) -> dict[str, Stream]:
    """The stream that copies, and the "current" one."""
    streams = {"copies": Stream("copies"), "current": Stream("a")}
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams["copies"])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams["current"])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return streams


def test_a_copy_waits_for_the_newest_work_of_every_stream_that_has_had_the_layer(card):
    slot = Slot(Flat())
    copies = CudaCopies(torch.device("cuda"), [slot])
    a, b, waited = card["current"], Stream("b"), card["copies"].waited
    copies.start(slot, [0], pinned=True)
    assert waited == []
    for user in (a, b, a):
        card["current"] = user
        copies.wait(slot)
        copies.release(slot)
    copies.start(slot, [0], pinned=True)
    assert sorted(waited) == ["a 2", "b 1"]
    waited.clear()
    copies.wait(slot)
    copies.release(slot)
    copies.start(slot, [0], pinned=True)
    assert waited == ["a 3"]
