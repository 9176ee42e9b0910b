"""The fused product against the same written plainly, whose gradients autograd works out."""

import pytest
import torch

from u1_core.model.linear import LowRank
from u1_core.model.product import product
from u1_core.model.recall import Recall


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_term(out: int, rank: int, seed: int, dropout: float = 0.0) -> LowRank:
    down, up = randn(rank, 10, seed=seed).requires_grad_(), randn(out, rank, seed=seed + 1).requires_grad_()
    return LowRank(down, up, 0.5 + seed, dropout, seed)


PARTS = {
    "no terms": lambda: [(6, ()), (5, ())],
    "one part's term": lambda: [(6, ()), (5, (a_term(5, 3, 1),))],
    "terms of all parts": lambda: [(6, (a_term(6, 2, 1), a_term(6, 4, 3))), (5, (a_term(5, 3, 5),))],
    "dropped inputs": lambda: [(6, (a_term(6, 2, 1, 0.5),)), (5, (a_term(5, 3, 5, 0.25), a_term(5, 1, 7)))],
}


def plainly(x, weight, parts, residual):
    start, columns = 0, []
    for rows, terms in parts:
        y = x @ weight[start : start + rows].T
        columns.append(y + sum((term(x) for term in terms), torch.zeros_like(y)))
        start += rows
    return torch.cat(columns, dim=1) + (0 if residual is None else residual)


def gradients(function, parts, with_residual, weight_trained=True):
    x, weight = randn(7, 10).requires_grad_(), randn(11, 10, seed=90).requires_grad_(weight_trained)
    residual = randn(7, 11, seed=91).requires_grad_() if with_residual else None
    y = function(x, weight, parts, residual)
    leaves = [x, *([weight] if weight_trained else []), *([residual] if with_residual else [])]
    leaves += [factor for _, terms in parts for term in terms for factor in (term.down, term.up)]
    return [y, *torch.autograd.grad((y * randn(7, 11, seed=92)).sum(), leaves)]


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_value_and_all_gradients(parts, with_residual):
    parts = parts()
    ours = gradients(product, parts, with_residual)
    for a, b in zip(ours, gradients(plainly, parts, with_residual), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_without_gradients_it_is_the_same(parts):
    parts, x, weight, residual = parts(), randn(7, 10), randn(11, 10, seed=90), randn(7, 11, seed=91)
    with torch.no_grad():
        expected = plainly(x, weight, parts, residual)
        torch.testing.assert_close(product(x, weight, parts, residual), expected)


def test_frozen_factors_get_no_gradient_and_pass_it_on():
    trained, frozen = a_term(11, 2, 1), a_term(11, 3, 3)
    frozen.down.requires_grad_(False), frozen.up.requires_grad_(False)
    x = randn(7, 10).requires_grad_()
    parts = [(11, (frozen, trained))]
    for function in (product, plainly):
        x.grad = trained.down.grad = None
        function(x, randn(11, 10, seed=90), parts, None).sum().backward()
        found = x.grad, trained.down.grad
        if function is product:
            ours = found
    assert frozen.down.grad is None
    for a, b in zip(ours, found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_frozen_weight_without_terms_keeps_none_of_its_input():
    saved = []
    x, weight = randn(7, 10).requires_grad_(), randn(11, 10, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda t: t):
        product(x, weight)
    assert saved == [weight.data_ptr()]


def test_the_residual_is_written_over_only_where_gradients_are_off():
    x, weight = randn(7, 10), randn(11, 10, seed=1)
    residual = randn(7, 11, seed=2)
    before = residual.clone()
    assert product(x.requires_grad_(), weight, residual=residual, last=True) is not residual
    assert torch.equal(residual, before)
    with torch.no_grad():
        out = product(x, weight, residual=residual)
    assert out.data_ptr() == residual.data_ptr()
    torch.testing.assert_close(out, before + (x @ weight.T).detach())


def test_a_layers_last_product_is_not_computed_again():
    recall = Recall(products=False, attention=False)
    x, weight, parts = randn(7, 10), randn(11, 10, seed=1), [(11, (a_term(11, 2, 1),))]
    first = product(x, weight, parts, recall=recall, last=True)
    recall.next_run()
    again = product(x, torch.full_like(weight, torch.nan), parts, recall=recall, last=True)
    assert again.shape == first.shape
    ours = torch.autograd.grad(again, parts[0][1][0].down, torch.ones_like(again))
    theirs = torch.autograd.grad(first, parts[0][1][0].down, torch.ones_like(first))
    assert torch.equal(ours[0], theirs[0])


def test_kept_products_are_handed_out_in_order():
    recall = Recall(products=True, attention=False)
    x, weights = randn(7, 10).requires_grad_(), [randn(11, 10, seed=1), randn(11, 10, seed=2)]
    first = [product(x, weight, recall=recall) for weight in weights]
    recall.next_run()
    nan = torch.full_like(weights[0], torch.nan)
    again = [product(x, nan, recall=recall) for _ in weights]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_fp32_factors_beside_bf16_get_fp32_gradients():
    term = a_term(11, 4, 1)
    down, up = (factor.detach().float().requires_grad_() for factor in (term.down, term.up))
    x, weight = randn(64, 10).bfloat16(), randn(11, 10, seed=1).bfloat16()
    y = product(x, weight, [(11, (LowRank(down, up, 0.5),))])
    assert y.dtype == torch.bfloat16
    exact = x.double() @ (weight.double() + 0.5 * up.double() @ down.double()).T
    assert (y.double() - exact).norm() / exact.norm() < 4e-3
    y.sum().backward()
    assert down.grad.dtype == up.grad.dtype == torch.float32
    expected = 0.5 * torch.ones(11, 64).double() @ (x.double() @ down.double().T)
    assert (up.grad.double() - expected).norm() / expected.norm() < 1e-2
