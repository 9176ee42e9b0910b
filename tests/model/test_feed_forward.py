from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from u1_core.model.config import MoeConfig
from u1_core.model.feed_forward import feed_forward
from u1_core.model.linear import LowRank
from u1_core.model.views import MlpWeights, MoeWeights

WIDTH, INNER, EXPERTS = 12, 20, 6
MOE = MoeConfig(EXPERTS, 2, INNER, True)


def block(x: torch.Tensor, weights: MlpWeights | MoeWeights, moe: MoeConfig | None, terms: dict) -> torch.Tensor:
    """The block by itself: nothing came in beside it."""
    return feed_forward(x, weights, moe, terms, torch.zeros_like(x))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def low_rank(out_features: int, in_features: int, seed: int) -> LowRank:
    return LowRank(randn(3, in_features, seed=seed), randn(out_features, 3, seed=seed + 1), scale=1.5)


def merged(weight: torch.Tensor, term: LowRank) -> torch.Tensor:
    return weight + term.scale * term.up @ term.down


@pytest.fixture
def experts() -> MoeWeights:
    return MoeWeights(
        4 * randn(EXPERTS, WIDTH), randn(EXPERTS, 2 * INNER, WIDTH, seed=1), randn(EXPERTS, WIDTH, INNER, seed=2)
    )


def naive_mixture(x: torch.Tensor, weights: MoeWeights, moe: MoeConfig) -> torch.Tensor:
    """Token by token, expert by expert, in fp64."""
    rows = []
    for token in x.double():
        shares = (weights.router.double() @ token).softmax(0)
        best = shares.argsort(descending=True)[: moe.experts_per_token]
        total = shares[best].sum() if moe.normalise_top_k else 1.0
        row = torch.zeros(WIDTH, dtype=torch.float64)
        for expert in best:
            gate, up = (
                weights.gate_up[expert, :INNER].double() @ token,
                weights.gate_up[expert, INNER:].double() @ token,
            )
            row += shares[expert] / total * (weights.down[expert].double() @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def test_swiglu(close):
    x, weights = randn(5, WIDTH, seed=9), MlpWeights(randn(2 * INNER, WIDTH), randn(WIDTH, INNER, seed=1))
    gate, up = x.double() @ weights.gate_up[:INNER].double().T, x.double() @ weights.gate_up[INNER:].double().T
    expected = (gate * torch.sigmoid(gate) * up) @ weights.down.double().T
    assert close(block(x, weights, None, {}), expected)


def test_swiglu_with_terms_equals_merged_weights(close):
    x, weights = randn(5, WIDTH, seed=9), MlpWeights(randn(2 * INNER, WIDTH), randn(WIDTH, INNER, seed=1))
    gate, up, down = low_rank(INNER, WIDTH, 20), low_rank(INNER, WIDTH, 30), low_rank(WIDTH, INNER, 40)
    terms = {"mlp.gate_proj": (gate,), "mlp.up_proj": (up,), "mlp.down_proj": (down,)}
    gate_up = torch.cat([merged(weights.gate_up[:INNER], gate), merged(weights.gate_up[INNER:], up)])
    expected = block(x, MlpWeights(gate_up, merged(weights.down, down)), None, {})
    assert close(block(x, weights, None, terms), expected)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("per_token", [1, 2, 6])
def test_mixture_equals_token_by_token(experts, close, normalise, per_token):
    moe = MoeConfig(EXPERTS, per_token, INNER, normalise)
    x = randn(11, WIDTH, seed=9)
    assert close(block(x, experts, moe, {}), naive_mixture(x, experts, moe))


def test_mixture_with_terms_on_router_and_experts(experts, close):
    x = randn(11, WIDTH, seed=9)
    router, gate, up, down = (
        low_rank(*shape, seed)
        for seed, shape in ((50, (EXPERTS, WIDTH)), (60, (INNER, WIDTH)), (70, (INNER, WIDTH)), (80, (WIDTH, INNER)))
    )
    terms = {
        "mlp.gate": (router,),
        "mlp.experts.3.gate_proj": (gate,),
        "mlp.experts.3.up_proj": (up,),
        "mlp.experts.1.down_proj": (down,),
    }
    gate_up, down_all = experts.gate_up.clone(), experts.down.clone()
    gate_up[3] = torch.cat([merged(gate_up[3, :INNER], gate), merged(gate_up[3, INNER:], up)])
    down_all[1] = merged(down_all[1], down)
    whole = MoeWeights(merged(experts.router, router), gate_up, down_all)
    ours = block(x, experts, MOE, terms)
    assert close(ours, naive_mixture(x, whole, MOE))
    assert not close(ours, naive_mixture(x, replace(whole, router=experts.router), MOE), 1e-3)


def test_gradients_reach_the_chosen_experts_and_the_router(experts):
    x = randn(1, WIDTH, seed=9)
    weights = MoeWeights(
        *(tensor.clone().requires_grad_(True) for tensor in (experts.router, experts.gate_up, experts.down))
    )
    block(x, weights, MOE, {}).square().sum().backward()
    chosen = set((x @ experts.router.T)[0].topk(2).indices.tolist())
    assert {e for e in range(EXPERTS) if weights.gate_up.grad[e].abs().sum() > 0} == chosen
    assert {e for e in range(EXPERTS) if weights.down.grad[e].abs().sum() > 0} == chosen
    assert weights.router.grad.abs().sum() > 0


def test_routers_shares_are_rounded_once():
    """bf16 experts that each say exactly 1 in a place of their own: the output is the shares, bit by bit."""
    x = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[:, 0] = 1
    router = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
    gate_up, down = torch.zeros(EXPERTS, 2 * INNER, WIDTH).bfloat16(), torch.zeros(EXPERTS, WIDTH, INNER).bfloat16()
    gate_up[:, 0, 0], gate_up[:, INNER, 0] = 32, 1 / 32  # silu(32) * 1/32 = 1
    for expert in range(EXPERTS):
        down[expert, expert, 0] = 1

    def shares(dtype: torch.dtype) -> torch.Tensor:
        best, chosen = F.linear(x, router).to(dtype).softmax(-1).topk(2)
        return torch.zeros(200, WIDTH).bfloat16().scatter(1, chosen, (best / best.sum(-1, keepdim=True)).bfloat16())

    ours = block(x, MoeWeights(router, gate_up, down), MOE, {})
    assert torch.equal(ours, shares(torch.float32))
    assert not torch.equal(ours, shares(torch.bfloat16))
