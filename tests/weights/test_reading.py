import threading

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.weights.reading import READERS, read_places
from u1_core.weights.snapshot import Snapshot


def test_every_tensor_lands_in_its_place(models):
    snapshot = Snapshot.open(models["u1"])
    names = [name for name in snapshot.tensors if ".layers." in name]
    places = {name: torch.empty(snapshot.tensors[name].shape) for name in names}
    read_places(snapshot, places.items())
    assert all(torch.equal(place, snapshot.read(name)) for name, place in places.items())


def test_several_are_read_at_a_time():
    class Gate:
        """Lets nobody through before as many are there as are to read at a time."""

        config = None

        def __init__(self):
            self.barrier = threading.Barrier(READERS, timeout=10)

        def read_into(self, name, place):
            self.barrier.wait()
            place.fill_(int(name))

    places = {str(number): torch.zeros(1) for number in range(2 * READERS)}
    read_places(Gate(), places.items())
    assert [int(place) for place in places.values()] == list(range(2 * READERS))


def test_what_goes_wrong_is_told():
    class Broken:
        config = None

        def read_into(self, name, place):
            if name == "b":
                raise U1Error("the disk is gone")

    with pytest.raises(U1Error, match="the disk is gone"):
        read_places(Broken(), [(name, torch.zeros(1)) for name in "abc"])
