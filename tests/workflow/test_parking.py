"""Weights that are away for a while: what is given back, and that every tensor is what it was afterwards."""

import threading

import pytest
import torch

from u1_core import nano
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.model.config import U1Config
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.weights.placement import Placement
from u1_core.workflow.parking import Parking, tensors_in


@pytest.fixture(scope="module")
def session() -> Session:
    """A CPU's memory stands for a card's."""
    session = Session.open(nano.MODEL, "cpu")
    for tower in (session.base_generation, session.understanding):
        assert tower.layers
    return session


def test_weights_come_back_bit_for_bit_to_the_tensors_that_had_them(session):
    before = [tensor.clone() for tensor in tensors_in(session)]
    parking = Parking(session)
    whole = parking.device_bytes
    storages = [tensor.untyped_storage() for tensor in tensors_in(session)]
    assert whole == sum({each.data_ptr(): each.nbytes() for each in storages}.values())
    assert parking.park(float("inf")) == parking.parked_bytes == whole
    assert parking.device_bytes == 0
    parking.bring_back()
    assert (parking.parked_bytes, parking.device_bytes) == (0, whole)
    assert all(now.equal(then) for now, then in zip(tensors_in(session), before, strict=True))


def test_no_more_is_given_back_than_is_asked_for(session):
    parking = Parking(session)
    whole = parking.device_bytes
    largest = max(tensor.untyped_storage().nbytes() for tensor in tensors_in(session))
    freed = parking.park(largest)
    assert largest <= freed < 2 * largest
    assert parking.device_bytes == whole - freed
    parking.bring_back()


def test_whoever_computes_is_waited_for(session):
    order = []
    parking = Parking(session)
    with session.lease:
        thread = threading.Thread(target=lambda: order.append(parking.park(1) > 0))
        thread.start()
        thread.join(0.2)
        assert order == []
    thread.join(10)
    assert order == [True]
    parking.bring_back()


def test_tensors_are_found_in_slots_mappings_and_lists_each_once():
    up, down = torch.zeros(4, 2), torch.ones(2, 3)
    adapter = Adapter({"a": LoraModule(down, up, 1.0), "b": LoraModule(down, up, 1.0)}, {"full": torch.arange(3.0)})
    found = list(tensors_in([adapter, (adapter,), {"again": up}]))
    assert [tuple(tensor.shape) for tensor in found] == [(2, 3), (4, 2), (3,)]


def test_a_session_that_is_gone_holds_nothing():
    session = Session.open(nano.MODEL, "cpu")
    parking = Parking(session)
    del session
    assert parking.device_bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA card here")
def test_a_card_gets_its_memory_and_draws_the_same_picture_afterwards():
    session = Session.open(nano.MODEL, "cuda", placement=Placement.spread(nano_layers(), 2, slots=2))
    settings = SampleSettings(192, 192, steps=2, guidance=Guidance(1.0))
    drawn = text_to_image(session, "a red house", settings).pictures
    parking, before = Parking(session), torch.cuda.memory_allocated()
    freed = parking.park(float("inf"))
    assert before - torch.cuda.memory_allocated() >= freed > 0
    parking.bring_back()
    assert text_to_image(session, "a red house", settings).pictures.equal(drawn)


def nano_layers() -> int:
    return U1Config.from_file(nano.MODEL / "config.json").layers
