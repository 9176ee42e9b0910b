"""Kernels for attention: which is tried, which is preferred, and that other threads keep all of theirs."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from u1_core.kernels import attention

CPU = torch.device("cpu")
FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
ALL = {FLASH, CUDNN, EFFICIENT, MATH}


@pytest.fixture(autouse=True)
def untried():
    attention.backends.cache_clear()
    yield
    attention.backends.cache_clear()


@pytest.fixture
def enabled_meanwhile(monkeypatch) -> list[set[SDPBackend]]:
    """A CPU stands for the card, whose clock stands still; the kernels that a process may use whenever it is read."""
    seen = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self) -> None:
            seen.append(set(_cur_sdpa_kernel_backends()))

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(attention, "QUERIES", 16)
    return seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are chosen on a card")
@pytest.mark.parametrize("backward", [False, True])
def test_the_quickest_that_work_come_first_and_what_is_under_way_sees_nothing_of_it(backward):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = attention.backends(torch.device("cuda:0"), torch.bfloat16, 8, 2, 64, backward)
    assert not saved
    assert found[-1][0] is MATH
    assert [seconds for _, seconds in found] == sorted(seconds for _, seconds in found)
    assert 0 < found[0][1] < 1


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_not_for_this_device_comes_last_and_no_kernel_is_ever_out_of_use(enabled_meanwhile, backward):
    """PyTorch has flash attention for a CPU, and neither of the other two."""
    before = _cur_sdpa_kernel_backends(with_priority=True)
    found = attention.backends(CPU, torch.float32, 4, 2, 8, backward)
    assert found == ((FLASH, 0.002), (CUDNN, float("inf")), (EFFICIENT, float("inf")), (MATH, float("inf")))
    assert all(enabled >= ALL for enabled in enabled_meanwhile)
    assert len(enabled_meanwhile) == 2 * 7
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_a_card_that_is_full_is_tried_again_another_time(enabled_meanwhile, monkeypatch):
    attend, full = attention.F.scaled_dot_product_attention, [torch.OutOfMemoryError("CUDA out of memory")]

    def at_first_full(*inputs, enable_gqa):
        if full:
            raise full.pop()
        return attend(*inputs, enable_gqa=enable_gqa)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", at_first_full)
    with pytest.raises(torch.OutOfMemoryError):
        attention.backends(CPU, torch.float32, 4, 2, 8, False)
    assert attention.backends(CPU, torch.float32, 4, 2, 8, False)[0] == (FLASH, 0.002)


def test_a_kernel_that_fails_comes_after_those_that_work(enabled_meanwhile, monkeypatch):
    def fail(*inputs, enable_gqa):
        raise RuntimeError("no execution plan")

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", fail)
    found = attention.backends(CPU, torch.float32, 4, 2, 8, False)
    assert [seconds for _, seconds in found] == [float("inf")] * 4
    assert found[-1][0] is MATH


def test_attention_is_called_with_the_quickest_first_and_all_others_still_in_use(monkeypatch):
    timed = ((CUDNN, 0.1), (FLASH, 0.2), (EFFICIENT, float("inf")), (MATH, float("inf")))
    monkeypatch.setattr(attention, "backends", lambda *about: timed)
    q = SimpleNamespace(is_cuda=True, shape=(1, 4, 512, 8), device=CPU, dtype=torch.float32, requires_grad=False)
    with attention.quickest(q, q):
        assert [each for each in _cur_sdpa_kernel_backends(with_priority=True) if each in ALL] == [
            CUDNN,
            FLASH,
            EFFICIENT,
            MATH,
        ]


def test_where_no_kernel_could_be_tried_the_choice_is_pytorchs_own(monkeypatch):
    monkeypatch.setattr(attention, "backends", lambda *about: tuple((each, float("inf")) for each in ALL))
    q = SimpleNamespace(is_cuda=True, shape=(1, 4, 512, 8), device=CPU, dtype=torch.float32, requires_grad=False)
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention.quickest(q, q):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_nothing_is_tried_on_a_cpu_or_for_a_few_queries():
    q = torch.zeros(1, 2, attention.SHORTEST, 8, requires_grad=True)
    with attention.quickest(q, q):
        pass
    assert attention.backends.cache_info().misses == 0
