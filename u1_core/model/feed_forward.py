"""The feed-forward blocks: SwiGLU, and a mixture of SwiGLU experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.kernels.switch import usable
from u1_core.model.config import MoeConfig
from u1_core.model.linear import LowRankTerms
from u1_core.model.product import product
from u1_core.model.recall import ONCE, RunOnce
from u1_core.model.views import MlpWeights, MoeWeights


def feed_forward(
    x: Tensor,
    weights: MlpWeights | MoeWeights,
    moe: MoeConfig | None,
    terms: LowRankTerms,
    residual: Tensor,
    recall: RunOnce = ONCE,
) -> Tensor:
    """`residual` plus whichever block the layer has, of x: (N, width) -> (N, width). It ends a layer.

    Where gradients are off, the result may be written over the residual.
    """
    if isinstance(weights, MoeWeights):
        return residual + _mixture(x, weights, moe, terms, recall)
    return _swiglu(x, weights.gate_up, weights.down, terms, "mlp.", recall, residual)


def _swiglu(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    terms: LowRankTerms,
    block: str,
    recall: RunOnce,
    residual: Tensor | None = None,
) -> Tensor:
    """down(silu(gate(x)) * up(x)), plus the residual. `block` is how the terms name it: "mlp." or "mlp.experts.3."."""
    inner = len(gate_up) // 2
    parts = [(inner, terms.get(f"{block}{name}", ())) for name in ("gate_proj", "up_proj")]
    y = gated(product(x, gate_up, parts, recall=recall))
    # With a residual this is the layer's last product; an expert's is still weighed by its share.
    last = residual is not None
    return product(y, down, [(len(down), terms.get(f"{block}down_proj", ()))], residual, recall, last)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: (N, 2 * inner), gate first -> (N, inner)."""
    if usable(gate_up):
        from u1_core.kernels.swiglu import GatedUp

        return GatedUp.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _mixture(x: Tensor, weights: MoeWeights, moe: MoeConfig, terms: LowRankTerms, recall: RunOnce) -> Tensor:
    """Each token goes through its top-k experts. The router's softmax is fp32, the shares are cast back (Qwen3-MoE)."""
    logits = product(x, weights.router, [(moe.experts, terms.get("mlp.gate", ()))], recall=recall)
    shares, chosen = logits.softmax(dim=-1, dtype=torch.float32).topk(moe.experts_per_token, dim=-1)
    if moe.normalise_top_k:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    shares = shares.to(x.dtype)
    out = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        y = _swiglu(x[token], weights.gate_up[expert], weights.down[expert], terms, f"mlp.experts.{expert}.", recall)
        out = out.index_add(0, token, y * shares[token, slot, None])
    return out
