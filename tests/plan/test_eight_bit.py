"""Whether the 8-bit optimizer can be had, on machines that lack a card, the package, or the package's library."""

import sys
from types import SimpleNamespace

import pytest
import torch

from u1_core.plan import eight_bit

CARD = torch.device("cuda")


@pytest.fixture
def package(monkeypatch, untried):
    """Stands for bitsandbytes, on a card that is the CPU; its optimizer is to be put in."""
    fake = SimpleNamespace(optim=SimpleNamespace(), __spec__=object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device, **options: ones(*shape, **options))
    return fake


def test_a_device_that_is_no_card():
    assert eight_bit.why_not(torch.device("cpu")) == "the device is cpu"


def test_a_package_that_is_not_there(monkeypatch, untried):
    monkeypatch.setattr(eight_bit.importlib.util, "find_spec", lambda name: None)
    assert eight_bit.why_not(CARD) == "bitsandbytes is not installed"


def test_a_package_whose_library_does_not_load(monkeypatch, package):
    def broken(parameters, lr):
        raise OSError("line one\nlibbitsandbytes_cuda130.so: cannot open shared object file")

    package.optim.PagedAdamW8bit = broken
    told = "bitsandbytes does not work: libbitsandbytes_cuda130.so: cannot open shared object file"
    assert eight_bit.why_not(CARD) == told


@pytest.mark.parametrize(("share", "why_not"), [(1, ""), (0, "a step of bitsandbytes changes nothing")])
def test_a_step_is_tried(package, share, why_not):
    package.optim.PagedAdamW8bit = lambda parameters, lr: torch.optim.SGD(parameters, lr=share * lr)
    with torch.inference_mode():
        assert eight_bit.why_not(CARD) == why_not


def test_a_card_that_is_full_is_tried_again_another_time(package):
    tries = []

    def optimizer(parameters, lr):
        tries.append(lr)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return torch.optim.SGD(parameters, lr=lr)

    package.optim.PagedAdamW8bit = optimizer
    with pytest.raises(torch.OutOfMemoryError):
        eight_bit.why_not(CARD)
    assert eight_bit.why_not(CARD) == ""
