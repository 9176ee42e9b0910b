"""The feed-forward blocks: SwiGLU, and a mixture of SwiGLU experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import MoeConfig
from u1_core.model.linear import LowRankTerms, add_terms, linear
from u1_core.model.views import MlpWeights, MoeWeights


def feed_forward(x: Tensor, weights: MlpWeights | MoeWeights, moe: MoeConfig | None, terms: LowRankTerms) -> Tensor:
    """(N, width) -> (N, width), by whichever block the layer has."""
    if isinstance(weights, MoeWeights):
        return _mixture(x, weights, moe, terms)
    return swiglu(x, weights.gate_up, weights.down, terms, "mlp.")


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, terms: LowRankTerms, block: str) -> Tensor:
    """down(silu(gate(x)) * up(x)). `block` is how the terms name this one: "mlp." or "mlp.experts.3."."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    gate = add_terms(gate, x, terms.get(f"{block}gate_proj", ()))
    up = add_terms(up, x, terms.get(f"{block}up_proj", ()))
    return linear(F.silu(gate) * up, down, terms=terms.get(f"{block}down_proj", ()))


def _mixture(x: Tensor, weights: MoeWeights, moe: MoeConfig, terms: LowRankTerms) -> Tensor:
    """Each token goes through its top-k experts. The router's softmax is fp32, the shares are cast back (Qwen3-MoE)."""
    logits = linear(x, weights.router, terms=terms.get("mlp.gate", ()))
    shares, chosen = logits.softmax(dim=-1, dtype=torch.float32).topk(moe.experts_per_token, dim=-1)
    if moe.normalise_top_k:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    shares = shares.to(x.dtype)
    out = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        y = swiglu(x[token], weights.gate_up[expert], weights.down[expert], terms, f"mlp.experts.{expert}.")
        out = out.index_add(0, token, y * shares[token, slot, None])
    return out
