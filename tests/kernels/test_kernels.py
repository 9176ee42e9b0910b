"""Each kernel against its plain form, value and gradient: the same numbers up to the order in which sums are taken."""

from contextlib import contextmanager

import pytest
import torch

from u1_core.kernels import norm, rotate, swiglu, switch
from u1_core.kernels.norm import RmsNorm
from u1_core.kernels.rotate import NormAndRotate
from u1_core.kernels.swiglu import GatedUp
from u1_core.model import feed_forward, rope

DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape, seed=0, dtype=torch.float32, device=None):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(device, dtype)


def value_and_gradient(function, x, dys):
    x = x.detach().clone().requires_grad_()
    outs = function(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    (gradient,) = torch.autograd.grad(outs, x, [dy.to(out.dtype) for dy, out in zip(dys, outs, strict=True)])
    return [*(out.detach() for out in outs), gradient]


def agree(kernel, plainly, x, dys, *others):
    """`kernel` and its plain form, both functions of (x, *others), in values and gradients.

    In fp32 to rounding. In bf16 the kernel is as near to the exact result as the plain form is, and values are the same
    numbers but where the order of a sum tips a rounding. Triton's interpreter cuts off where a card rounds.
    """
    rounds = x.is_cuda
    ours = value_and_gradient(lambda x: kernel(x, *others), x, dys)
    with switch.plain():
        theirs = value_and_gradient(lambda x: plainly(x, *others), x, dys)
        exact = value_and_gradient(lambda x: plainly(x, *(o.double() for o in others)), x.double(), dys)
    for number, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert a.dtype == b.dtype == x.dtype
        assert a.shape == b.shape
        if x.dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
            continue
        assert (a - c).norm() <= (1.02 if rounds else 5) * (b - c).norm()
        if rounds and number < len(dys):
            assert (a != b).float().mean() < 0.01


@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(device, dtype, width):
    x, weight = randn(9, width, dtype=dtype, device=device), randn(width, seed=1, dtype=dtype, device=device)
    dy = randn(9, width, seed=2, dtype=dtype, device=device)
    agree(lambda x, w: RmsNorm.apply(x, w, 1e-3), lambda x, w: rope.rms_norm(x, w, 1e-3), x, [dy], weight)


@pytest.mark.parametrize("inner", [48, 2050])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(device, dtype, inner):
    gate_up, dy = randn(3, 2 * inner, dtype=dtype, device=device), randn(3, inner, seed=1, dtype=dtype, device=device)
    agree(GatedUp.apply, feed_forward.gated, gate_up, [dy])


@pytest.mark.parametrize("dim", [8, 24, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_rotate(device, dtype, dim):
    heads, kv_heads, tokens = 4, 2, 11
    qkv = randn(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype, device=device)
    norms = [1 + 0.1 * randn(2, dim // 2, seed=seed, dtype=dtype, device=device) for seed in (1, 2)]
    tables = [randn(tokens, 1, dim, seed=seed, device=device) for seed in (3, 4)]
    dys = [randn(tokens, n, dim, seed=5 + n, dtype=dtype, device=device) for n in (heads, kv_heads, kv_heads)]

    def kernel(x, q_norm, k_norm, cos, sin):
        return NormAndRotate.apply(x, q_norm, k_norm, 1e-3, cos, sin, kv_heads)

    def plainly(x, q_norm, k_norm, cos, sin):
        return rope.turn_heads(x, q_norm, k_norm, 1e-3, (cos, sin), kv_heads)

    agree(kernel, plainly, qkv, dys, *norms, *tables)


class Launches:
    """Stands for a module's kernels: notes the tensor whose card is the current one at each launch."""

    def __init__(self, monkeypatch, module):
        self.noted, self._current = [], []
        monkeypatch.setattr(torch.cuda, "device_of", self._on_card_of)
        for name in ("_forward", "_backward"):
            monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid):
        return lambda first, *rest, **options: self.noted.append(self._current[-1].data_ptr() if self._current else 0)

    @contextmanager
    def _on_card_of(self, tensor):
        self._current.append(tensor)
        yield
        self._current.pop()


@pytest.mark.parametrize("module", [norm, rotate, swiglu])
def test_kernels_are_launched_on_the_card_of_their_tensors(module, monkeypatch):
    """Which need not be the current one."""
    launches = Launches(monkeypatch, module)
    x = torch.zeros(4, 4 * 8, requires_grad=True)
    if module is norm:
        outs = [RmsNorm.apply(x, torch.ones(32), 1e-3)]
    elif module is swiglu:
        outs = [GatedUp.apply(x)]
    else:
        tables = [torch.zeros(4, 1, 8)] * 2
        outs = NormAndRotate.apply(x, torch.ones(2, 4), torch.ones(2, 4), 1e-3, *tables, 1)
    torch.autograd.grad(outs, x, [torch.zeros_like(out) for out in outs])
    passes = 2 if module is rotate else 1  # q and k
    assert launches.noted == [x.data_ptr()] * 2 * passes


def test_on_a_cpu_the_plain_form_is_used():
    assert not switch.usable(torch.ones(2))
    assert switch.why_not(torch.device("cpu")) == "they are for CUDA cards, and this is cpu"


def test_a_card_on_which_triton_fails_gets_plain_pytorch_and_is_told(monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("some story\nFailed to find C compiler")

    monkeypatch.setattr(RmsNorm, "apply", fail)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape))
    switch.why_not.cache_clear()
    try:
        assert switch.why_not(torch.device("cuda", 7)) == "Triton does not work here: Failed to find C compiler"
        assert "plain PyTorch is used" in caplog.text
    finally:
        switch.why_not.cache_clear()


def test_a_card_that_is_full_is_tried_again_another_time(monkeypatch):
    outcomes = [torch.OutOfMemoryError("CUDA out of memory"), None]

    def apply(x, weight, eps):
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return x

    monkeypatch.setattr(RmsNorm, "apply", apply)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape))
    switch.why_not.cache_clear()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            switch.why_not(torch.device("cuda", 7))
        assert switch.why_not(torch.device("cuda", 7)) == ""
    finally:
        switch.why_not.cache_clear()
