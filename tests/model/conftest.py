"""A slow, plain U1 in fp64, written from the facts over a checkpoint's tensors by name: the fast one must equal it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import GENERATION, UNDERSTANDING, U1Config


class SlowU1:
    """One sequence at a time, one mask for all, experts token by token, convolutions as convolutions."""

    def __init__(self, config: U1Config, read: Callable[[str], Tensor]) -> None:
        self.config, self._read = config, read

    def understand(self, h: Tensor, positions: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """h (N, width), positions (3, N) -> hidden (N, width) after the final norm, and (K, V) by layer."""
        t = positions[0]
        index = torch.arange(len(t))
        seen = (index[None] <= index[:, None]) | (t[None] == t[:, None])
        h, kv = self._layers(UNDERSTANDING, h, positions, seen, [])
        return self.norm(h, "language_model.model.norm"), kv

    def generate(self, z: Tensor, t: float, prefix: list[tuple[Tensor, Tensor]], next_t: int) -> Tensor:
        """z (3, H, W) with the prefix's (K, V) by layer -> x_pred (3, H, W)."""
        config, side = self.config, self.config.token_pixels
        rows, columns = z.shape[1] // side, z.shape[2] // side
        h = self.see("fm_modules.vision_model_mot_gen.embeddings", z)
        h = h + self.embed("fm_modules.timestep_embedder", t)
        if config.noise_scale_embedding:
            share = config.noise_scale_for(rows * columns) / config.noise_scale_max
            h = h + self.embed("fm_modules.noise_scale_embedder", share)
        cells = [(next_t, row, column) for row in range(rows) for column in range(columns)]
        seen = torch.ones(len(cells), len(prefix[0][0]) + len(cells), dtype=torch.bool)
        h, _ = self._layers(GENERATION, h, torch.tensor(cells).T, seen, prefix)
        return self.head(self.norm(h, "language_model.model.norm_mot_gen"), rows, columns)

    def see(self, prefix: str, picture: Tensor) -> Tensor:
        """(3, H, W) -> (tokens, width): convolution, GELU, 2-D RoPE, convolution."""
        config = self.config
        weight, bias = self.w(f"{prefix}.patch_embedding.weight"), self.w(f"{prefix}.patch_embedding.bias")
        x = F.gelu(F.conv2d(picture[None].double(), weight, bias, stride=config.patch_size))[0]
        dim, rows, columns = x.shape
        turned = torch.empty_like(x)
        for half, positions in ((0, torch.arange(columns)[None, :]), (1, torch.arange(rows)[:, None])):
            for pair in range(dim // 4):
                first = half * dim // 2 + 2 * pair
                angle = positions * config.vision_rope_theta ** (-2 * pair / (dim // 2))
                number = torch.complex(x[first], x[first + 1]) * torch.exp(1j * angle.double())
                turned[first], turned[first + 1] = number.real, number.imag
        weight, bias = self.w(f"{prefix}.dense_embedding.weight"), self.w(f"{prefix}.dense_embedding.bias")
        return F.conv2d(turned[None], weight, bias, stride=config.merge)[0].flatten(1).T

    def embed(self, prefix: str, value: float) -> Tensor:
        """A scalar's embedding (width,)."""
        angles = value * 10000.0 ** (-torch.arange(128).double() / 128)
        x = self.linear(torch.cat([angles.cos(), angles.sin()]), f"{prefix}.mlp.0")
        return self.linear(F.silu(x), f"{prefix}.mlp.2")

    def head(self, h: Tensor, rows: int, columns: int) -> Tensor:
        """(tokens, width) -> (3, H, W)."""
        if self.config.pixel_head:
            x = h.T.reshape(-1, rows, columns)
            for conv in ("conv1", "conv2"):
                weight, bias = (self.w(f"fm_modules.fm_head.{conv}.{part}") for part in ("weight", "bias"))
                x = F.conv2d(shuffle(x, 2)[None], weight, bias, padding=1)[0]
                x = F.gelu(x) if conv == "conv1" else x
            return shuffle(x, 8)
        side = self.config.token_pixels
        patches = self.linear(F.gelu(self.linear(h, "fm_modules.fm_head.0")), "fm_modules.fm_head.2")
        picture = torch.empty(3, rows * side, columns * side, dtype=torch.float64)
        for token, patch in enumerate(patches):
            top, left = token // columns * side, token % columns * side
            picture[:, top : top + side, left : left + side] = patch.reshape(side, side, 3).permute(2, 0, 1)
        return picture

    def w(self, name: str) -> Tensor:
        return self._read(name).double()

    def linear(self, x: Tensor, module: str) -> Tensor:
        return x @ self.w(f"{module}.weight").T + self.w(f"{module}.bias")

    def norm(self, x: Tensor, module: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.w(f"{module}.weight")

    def _layers(self, tower: str, h: Tensor, positions: Tensor, seen: Tensor, past: list) -> tuple[Tensor, list]:
        h, kv = h.double(), []
        for index in range(self.config.layers):
            at = f"language_model.model.layers.{index}."
            x = self.norm(h, f"{at}input_layernorm{tower}")
            attended, k, v = self._attend(f"{at}self_attn.", tower, x, positions, seen, past[index] if past else None)
            h = h + attended @ self.w(f"{at}self_attn.o_proj{tower}.weight").T
            x = self.norm(h, f"{at}post_attention_layernorm{tower}")
            h = h + self._feed_forward(f"{at}mlp{tower}.", tower, index, x)
            kv.append((k, v))
        return h, kv

    def _attend(self, at: str, tower: str, x: Tensor, positions: Tensor, seen: Tensor, past) -> tuple[Tensor, ...]:
        config, d = self.config, self.config.head_dim

        def project(name: str) -> Tensor:
            return (x @ self.w(f"{at}{name}_proj{tower}.weight").T).reshape(len(x), -1, d)

        def normed(y: Tensor, name: str) -> Tensor:
            t = self.norm(y[..., : d // 2], f"{at}{name}_norm{tower}")
            hw = self.norm(y[..., d // 2 :], f"{at}{name}_norm_hw{tower}")
            return turn_head(torch.cat([t, hw], -1), positions, config)

        q, k, v = normed(project("q"), "q"), normed(project("k"), "k"), project("v")
        keys, values = (torch.cat([past[0], k]), torch.cat([past[1], v])) if past else (k, v)
        outputs = []
        for head in range(config.heads):
            group = head // (config.heads // config.kv_heads)
            scores = (q[:, head] @ keys[:, group].T / d**0.5).masked_fill(~seen, -torch.inf)
            outputs.append(scores.softmax(-1) @ values[:, group])
        return torch.cat(outputs, -1), k, v

    def _feed_forward(self, at: str, tower: str, index: int, x: Tensor) -> Tensor:
        def swiglu(row: Tensor, at: str) -> Tensor:
            gate, up = (row @ self.w(f"{at}{name}_proj.weight").T for name in ("gate", "up"))
            return (F.silu(gate) * up) @ self.w(f"{at}down_proj.weight").T

        moe = self.config.moe_of(tower, index)
        if moe is None:
            return swiglu(x, at)
        rows = []
        for row in x:
            shares = (row @ self.w(f"{at}gate.weight").T).softmax(-1)
            best = sorted(range(moe.experts), key=lambda expert: -shares[expert])[: moe.experts_per_token]
            total = sum(shares[expert] for expert in best)
            rows.append(sum(shares[expert] / total * swiglu(row, f"{at}experts.{expert}.") for expert in best))
        return torch.stack(rows)


def turn_head(x: Tensor, positions: Tensor, config: U1Config) -> Tensor:
    """RoPE of (N, heads, head_dim), each axis by itself: pairs (i, i + half of the part) as complex numbers."""
    d, parts, start = config.head_dim, [], 0
    axes = ((d // 2, config.rope_theta), (d // 4, config.rope_theta_hw), (d // 4, config.rope_theta_hw))
    for axis, (size, theta) in enumerate(axes):
        part = x[..., start : start + size].double()
        angle = positions[axis].double()[:, None, None] * theta ** (-2 * torch.arange(size // 2).double() / size)
        number = torch.complex(part[..., : size // 2], part[..., size // 2 :]) * torch.exp(1j * angle)
        parts += [number.real, number.imag]
        start += size
    return torch.cat(parts, -1)


def shuffle(x: Tensor, r: int) -> Tensor:
    """Pixel shuffle, pixel by pixel: (C r², H, W) -> (C, H r, W r)."""
    channels, height, width = x.shape[0] // r**2, x.shape[1], x.shape[2]
    out = torch.empty(channels, height * r, width * r, dtype=x.dtype)
    for i in range(r):
        for j in range(r):
            for channel in range(channels):
                out[channel, i::r, j::r] = x[channel * r * r + i * r + j]
    return out


@pytest.fixture(scope="session")
def slow(tiny) -> Callable[[str], SlowU1]:
    """Kind -> the slow model with the same weights as `tiny(kind)`."""
    return lambda kind: SlowU1(tiny(kind).config, tiny(kind).source.read)


@pytest.fixture(scope="session")
def naive_turn() -> Callable[[Tensor, Tensor, U1Config], Tensor]:
    return turn_head


@pytest.fixture(scope="session")
def naive_shuffle() -> Callable[[Tensor, int], Tensor]:
    return shuffle
