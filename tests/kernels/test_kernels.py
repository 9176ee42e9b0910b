"""Each kernel against its plain form, value and gradient: the same numbers up to the order in which sums are taken."""

import pytest
import torch
import torch.nn.functional as F

from u1_core.kernels import switch
from u1_core.kernels.norm import RmsNorm
from u1_core.kernels.rotate import NormAndRotate
from u1_core.kernels.swiglu import GatedUp
from u1_core.model import feed_forward, rope

DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape, seed=0, dtype=torch.float32, device=None):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(device, dtype)


def value_and_gradient(function, x, dys):
    x = x.clone().requires_grad_()
    outs = function(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    (gradient,) = torch.autograd.grad(outs, x, dys[: len(outs)])
    return [*(out.detach() for out in outs), gradient]


def agree(kernel, plain, dtype):
    """fp32 to rounding; bf16 bit for bit but where a sum's order tips a rounding: a few numbers, by one step. Triton's
    interpreter cuts off where a card rounds, so there bf16 only tells that the dtypes go together."""
    for ours, theirs in zip(kernel, plain, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == theirs.shape
        if dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
        else:
            rounded = ours.is_cuda
            assert not rounded or (ours != theirs).float().mean() < 0.02
            assert (ours - theirs).float().norm() / theirs.float().norm() < (2e-3 if rounded else 2e-2)


@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(device, dtype, width):
    x, weight = randn(9, width, dtype=dtype, device=device), randn(width, seed=1, dtype=dtype, device=device)
    dy = randn(9, width, seed=2, dtype=dtype, device=device)

    def plainly(x):
        return weight * F.rms_norm(x, x.shape[-1:], eps=1e-3)

    agree(
        value_and_gradient(lambda x: RmsNorm.apply(x, weight, 1e-3), x, [dy]),
        value_and_gradient(plainly, x, [dy]),
        dtype,
    )


@pytest.mark.parametrize("inner", [48, 2050])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(device, dtype, inner):
    gate_up, dy = randn(3, 2 * inner, dtype=dtype, device=device), randn(3, inner, seed=1, dtype=dtype, device=device)
    with switch.plain():
        expected = value_and_gradient(feed_forward.gated, gate_up, [dy])
    agree(value_and_gradient(GatedUp.apply, gate_up, [dy]), expected, dtype)


@pytest.mark.parametrize("dim", [8, 24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_rotate(device, dtype, dim):
    heads, kv_heads, tokens = 4, 2, 11
    qkv = randn(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype, device=device)
    norms = [1 + 0.1 * randn(2, dim // 2, seed=seed, dtype=dtype, device=device) for seed in (1, 2)]
    tables = [randn(tokens, 1, dim, seed=seed, device=device) for seed in (3, 4)]
    dys = [randn(tokens, n, dim, seed=5 + n, dtype=dtype, device=device) for n in (heads, kv_heads, kv_heads)]

    def kernel(x):
        return NormAndRotate.apply(x, *norms, 1e-3, *tables, kv_heads)

    def plainly(x):
        return rope.turn_heads(x, *norms, 1e-3, tuple(tables), kv_heads)

    with switch.plain():
        expected = value_and_gradient(plainly, qkv, dys)
    agree(value_and_gradient(kernel, qkv, dys), expected, dtype)


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
