import pytest
import torch

from u1_core.model.linear import LowRank, TowerTerms, linear


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def term() -> LowRank:
    return LowRank(randn(4, 10, seed=1), randn(6, 4, seed=2), scale=0.75)


def test_one_term_equals_the_merged_weight(term, close):
    x, weight, bias = randn(3, 5, 10), randn(6, 10, seed=3), randn(6, seed=4)
    whole = weight.double() + 0.75 * term.up.double() @ term.down.double()
    assert close(linear(x, weight, bias, (term,)), x.double() @ whole.T + bias.double())


def test_terms_add_up(term, close):
    x, weight = randn(5, 10), randn(6, 10, seed=3)
    other = LowRank(randn(2, 10, seed=5), randn(6, 2, seed=6), scale=-2.0)
    whole = weight + 0.75 * term.up @ term.down - 2.0 * other.up @ other.down
    assert close(linear(x, weight, terms=(term, other)), x.double() @ whole.double().T)


def test_fp32_factors_work_beside_bf16(term):
    x = randn(5, 10).bfloat16()
    out = term(x)
    assert out.dtype == torch.bfloat16
    exact = 0.75 * x.double() @ (term.up.double() @ term.down.double()).T
    assert (out.double() - exact).norm() / exact.norm() < 2e-2


def test_dropout_depends_on_the_seed_alone(term):
    x = randn(50, 10)
    torch.manual_seed(0)
    first = LowRank(term.down, term.up, 1.0, dropout=0.5, seed=7)(x)
    state = torch.get_rng_state()
    again = LowRank(term.down, term.up, 1.0, dropout=0.5, seed=7)(x)
    other = LowRank(term.down, term.up, 1.0, dropout=0.5, seed=8)(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_dropout_keeps_the_mean_and_drops_its_share():
    """With identity factors the output is the input, each number 0 or 1 / (1 - p) times itself."""
    eye = torch.eye(100)
    kept = LowRank(eye, eye, 1.0, dropout=0.25, seed=3)(torch.ones(400, 100))
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.01)  # 40,000 draws: a standard error of 0.003
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_gradients_go_to_the_factors(term):
    down, up = term.down.requires_grad_(True), term.up.requires_grad_(True)
    x = randn(5, 10)
    linear(x, randn(6, 10, seed=3), terms=(LowRank(down, up, 0.75),)).sum().backward()
    ones = torch.ones(5, 6)
    torch.testing.assert_close(up.grad, 0.75 * ones.T @ (x @ down.detach().T))
    torch.testing.assert_close(down.grad, 0.75 * (ones @ up.detach()).T @ x)


def test_no_terms_for_a_tower():
    terms = TowerTerms.none(3)
    assert list(terms.layers) == [{}, {}, {}]
    assert terms.modules == {}
