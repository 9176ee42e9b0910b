"""What the parts of a step take on a card that is not here: arithmetic and bytes over stated rates.

Coarser than measuring (`measure`): good enough to tell what fits, and what would be gained by a larger card.
"""

from dataclasses import dataclass

from u1_core.model.config import GENERATION, MoeConfig, U1Config
from u1_core.model.stack import Keep
from u1_core.plan.costs import NO_UPDATE, Costs, EndsCost, LayerCost, UpdateCost
from u1_core.plan.work import TrainingWork, Work, ends_bytes, in_layers, parameters

STATE_BYTES = {"adamw": 8, "paged_adamw8bit": 0, "adafactor": 0, "prodigy": 16, "schedule_free": 8}
"""Bytes of optimizer state on the card for a number that is trained."""
SLACK_BYTES = 640 * 2**20


@dataclass(frozen=True)
class Rates:
    """What a card does in a second."""

    products: float = 120e12
    """bf16 operations in products of matrices, summed in fp32."""
    attention: float = 90e12
    memory: float = 0.8e12
    """Bytes to and from its memory."""
    bus: float = 22e9
    """Bytes from page-locked host memory."""
    pageable: float = 9e9

    def __str__(self) -> str:
        return (
            f"{self.products / 1e12:.0f} TFLOP/s in products, {self.attention / 1e12:.0f} in attention, "
            f"{self.memory / 1e12:.1f} TB/s of memory, {self.bus / 1e9:.0f} GB/s over the bus"
        )


def estimate(work: Work, rates: Rates) -> Costs:
    """Costs of this work's parts, for a layer that is computed one fused operation after the other."""
    sizes = _Sizes.of(work)
    training = isinstance(work, TrainingWork)
    layer = {keep: _layer(sizes, keep, rates) for keep in Keep} if training else {Keep.INPUT: _sampled(sizes, rates)}
    weights, picture = ends_bytes(work.config, work.dtype), work.picture_bytes
    seconds = (3 if training else 1) * 2 * sizes.tokens * weights / work.dtype.itemsize / rates.products
    update = NO_UPDATE
    if training:
        # Parameters, gradients and state are read and written.
        state = STATE_BYTES[work.optimizer] * work.trained
        update = UpdateCost((4 * 4 * work.trained + 2 * state) / rates.memory, state, 0)
    held = 4 * picture + 3 * sizes.width_bytes
    return Costs(layer, EndsCost(seconds, held, 2 * picture, 2 * picture), update, SLACK_BYTES)


@dataclass(frozen=True)
class _Sizes:
    """A layer's work over all tokens of a pass: bytes of its activations, operations of its parts."""

    tokens: int
    width_bytes: int
    qkv_bytes: int
    attended_bytes: int
    gate_up_bytes: int
    products: float
    """Operations of a forward pass in products, low-rank terms apart."""
    terms: float
    attention: float
    last_product: float
    """Part of `products` that is not computed again: what the MLP's last product gives, backward does not need."""

    @classmethod
    def of(cls, work: Work) -> "_Sizes":
        config, item = work.config, work.dtype.itemsize
        picture = work.width * work.height // config.token_pixels**2
        tokens = picture * work.batch * work.branches
        heads, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        inner = _inner_width(config, config.moe_gen if config.moe_of(GENERATION, 0) else None)
        weights = config.width * (2 * heads + 2 * keys + 3 * inner)
        return cls(
            tokens=tokens,
            width_bytes=tokens * config.width * item,
            qkv_bytes=tokens * (heads + 2 * keys) * item,
            attended_bytes=tokens * heads * item,
            gate_up_bytes=tokens * 2 * inner * item,
            products=2.0 * tokens * weights,
            terms=2.0 * tokens * parameters(in_layers(work.modules)) / config.layers,
            attention=4.0 * tokens * (picture + work.prefix_tokens) * heads,
            last_product=2.0 * tokens * config.width * inner,
        )

    @property
    def activations_bytes(self) -> int:
        """All that lies between a layer's products."""
        return 4 * self.width_bytes + 2 * self.qkv_bytes + self.attended_bytes + 3 * self.gate_up_bytes // 2


def _inner_width(config: U1Config, moe: MoeConfig | None) -> int:
    """Of the MLPs that a token goes through, together."""
    return moe.experts_per_token * moe.expert_width if moe else config.mlp_width


def _forward_s(sizes: _Sizes, rates: Rates) -> float:
    passing = 2 * sizes.activations_bytes / rates.memory
    return (sizes.products + sizes.terms) / rates.products + sizes.attention / rates.attention + passing


def _sampled(sizes: _Sizes, rates: Rates) -> LayerCost:
    return LayerCost(_forward_s(sizes, rates), 0.0, 0, sizes.qkv_bytes * 2 + 2 * sizes.gate_up_bytes)


def _layer(sizes: _Sizes, keep: Keep, rates: Rates) -> LayerCost:
    """Backward: gradients of the activations, twice a term's work for both of its factors, five products in attention
    for forward's two; and what the rung computes again."""
    passing = sizes.activations_bytes / rates.memory
    backward = (sizes.products + 2 * sizes.terms) / rates.products + 2.5 * sizes.attention / rates.attention
    again = {
        Keep.INPUT: (sizes.products - sizes.last_product + sizes.terms) / rates.products
        + sizes.attention / rates.attention
        + 2 * passing,
        Keep.ATTENTION: (sizes.products - sizes.last_product + sizes.terms) / rates.products + 2 * passing,
        Keep.PRODUCTS: passing,
        Keep.ALL: 0.0,
    }[keep]
    attended = sizes.width_bytes + sizes.attended_bytes
    kept = {
        Keep.INPUT: sizes.width_bytes,
        Keep.ATTENTION: attended,
        Keep.PRODUCTS: attended + sizes.qkv_bytes + sizes.width_bytes + sizes.gate_up_bytes,
        Keep.ALL: sizes.activations_bytes,
    }[keep]
    work_bytes = sizes.activations_bytes + sizes.gate_up_bytes - kept
    return LayerCost(
        _forward_s(sizes, rates), backward + again + 4 * passing, kept, max(work_bytes, sizes.gate_up_bytes)
    )
