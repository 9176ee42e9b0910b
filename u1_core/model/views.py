"""The weights as the model's functions take them: plain tensors, grouped by what uses them.

Who holds these tensors, and where, is not the model's business: a `Sequence[LayerWeights]` may be a list of resident
layers or an object that brings layer i in when it is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """SwiGLU. gate_up is (2 * inner, width), gate's rows first; down is (width, inner)."""

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """A mixture of SwiGLU experts. router (E, width), gate_up (E, 2 * inner, width), down (E, width, inner)."""

    router: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer of one tower.

    qkv is ((heads + 2 * kv_heads) * head_dim, width), q's rows first, then k's, then v's; o is (width, heads *
    head_dim). q_norm and k_norm are (2, head_dim / 2): the half of the head that carries t, then the half that
    carries height and width.
    """

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_norm: Tensor
    mlp: MlpWeights | MoeWeights


@dataclass(frozen=True)
class Understanding:
    """The understanding tower and what stands at its ends. `vision` holds `vision_model.*` by full name."""

    layers: Sequence[LayerWeights]
    norm: Tensor
    embed_tokens: Tensor
    lm_head: Tensor
    vision: Mapping[str, Tensor]


@dataclass(frozen=True)
class Generation:
    """The generation tower. `modules` holds `fm_modules.*` by full name: embedders, vision embedding, head."""

    layers: Sequence[LayerWeights]
    norm: Tensor
    modules: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class KVChunk:
    """K and V of some consecutive tokens, after norm and RoPE: each (layers, tokens, kv_heads, head_dim)."""

    k: Tensor
    v: Tensor

    @property
    def tokens(self) -> int:
        return self.k.shape[1]

    @property
    def n_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """What a picture attends to besides itself: the prompt's K and V, in chunks so that prompts can share one."""

    chunks: tuple[KVChunk, ...]
    next_t: int
    """The t position that follows the prompt's last token."""

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)

    def layer(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """The (K, V) pairs of layer `index`, each (tokens, kv_heads, head_dim)."""
        return [(chunk.k[index], chunk.v[index]) for chunk in self.chunks]
