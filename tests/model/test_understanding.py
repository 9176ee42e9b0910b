import pytest
import torch

from u1_core.model.attention import Segment
from u1_core.model.config import LM_HEAD
from u1_core.model.layer import grid_positions
from u1_core.model.linear import LowRank, TowerTerms
from u1_core.model.understanding import embed_tokens, logits, understanding_pass
from u1_core.model.views import KVChunk, PrefixKV

IDS = torch.tensor([5, 17, 270, 3, 99, 42, 8])


def text_positions(start: int, tokens: int) -> torch.Tensor:
    positions = torch.zeros(3, tokens, dtype=torch.int64)
    positions[0] = torch.arange(start, start + tokens)
    return positions


def text_segments(tokens: int) -> list[Segment]:
    return [Segment(0, tokens, keys=((0, tokens),), causal=True)]


def text_and_picture(model) -> tuple[torch.Tensor, torch.Tensor, list[Segment]]:
    """Three tokens of text, a picture of 2 x 3 tokens, then four more of text."""
    words = embed_tokens(model.understanding, IDS)
    picture = torch.randn(6, 64, generator=torch.Generator().manual_seed(4))
    h = torch.cat([words[:3], picture, words[3:]])
    cpu = torch.device("cpu")
    positions = torch.cat([text_positions(0, 3), grid_positions([3], 2, 3, cpu), text_positions(4, 4)], dim=1)
    segments = [
        Segment(0, 3, keys=((0, 3),), causal=True),
        Segment(3, 9, keys=((0, 9),), causal=False),
        Segment(9, 13, keys=((0, 13),), causal=True),
    ]
    return h, positions, segments


def test_text_and_a_picture_equal_the_slow_model(kind, tiny, slow, close):
    model = tiny(kind)
    h, positions, segments = text_and_picture(model)
    hidden, k, v = understanding_pass(model.config, model.understanding, h, positions, segments)
    expected, kv = slow(kind).understand(h, positions)
    assert close(hidden, expected, 3e-6)
    assert k.shape == v.shape == (3, 13, 2, 16)
    for index, (k_slow, v_slow) in enumerate(kv):
        assert close(k[index], k_slow, 3e-6)
        assert close(v[index], v_slow, 3e-6)


@pytest.mark.parametrize("cut", [3, 9, 12])
def test_going_on_from_a_past_equals_one_pass(tiny, close, cut):
    """Cut before the picture, after it, and before the last token."""
    model = tiny("u1")
    h, positions, segments = text_and_picture(model)
    hidden, k, v = understanding_pass(model.config, model.understanding, h, positions, segments)

    def part(start: int, end: int) -> list[Segment]:
        past = 0 if start else None
        return [
            Segment(
                max(s.start, start) - start, min(s.end, end) - start, ((0, min(s.end, end) - start),), s.causal, past
            )
            for s in segments
            if s.end > start and s.start < end
        ]

    run = (model.config, model.understanding)
    _, k1, v1 = understanding_pass(*run, h[:cut], positions[:, :cut], part(0, cut))
    past = PrefixKV((KVChunk(k1, v1),), cut)
    hidden2, k2, v2 = understanding_pass(*run, h[cut:], positions[:, cut:], part(cut, 13), [past])
    assert close(hidden2, hidden[cut:])
    assert close(torch.cat([k1, k2], 1), k)
    assert close(torch.cat([v1, v2], 1), v)


def test_later_text_does_not_change_what_is_before(tiny):
    model = tiny("u1")
    run = (model.config, model.understanding)
    whole, *_ = understanding_pass(*run, embed_tokens(model.understanding, IDS), text_positions(0, 7), text_segments(7))
    part, *_ = understanding_pass(
        *run, embed_tokens(model.understanding, IDS[:4]), text_positions(0, 4), text_segments(4)
    )
    torch.testing.assert_close(whole[:4], part, rtol=1e-5, atol=1e-6)


def test_terms_equal_merged_weights(tiny, slow, close):
    """A term on q, k, v, o and down of layer 1 against the slow model with those weights merged."""
    model, plain = tiny("u1"), slow("u1")
    local = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    generator, terms, merged = torch.Generator().manual_seed(5), {}, {}
    for name in local:
        path = f"language_model.model.layers.1.{name}.weight"
        rows, columns = model.source.read(path).shape
        term = LowRank(torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator), 0.05)
        terms[name] = (term,)
        merged[path] = model.source.read(path) + 0.05 * term.up @ term.down
    h, positions, segments = text_and_picture(model)
    hidden, *_ = understanding_pass(
        model.config, model.understanding, h, positions, segments, terms=TowerTerms([{}, terms, {}], {})
    )
    changed = type(plain)(model.config, lambda name: merged[name] if name in merged else model.source.read(name))
    assert close(hidden, changed.understand(h, positions)[0], 3e-6)
    assert not close(hidden, plain.understand(h, positions)[0], 1e-2)


def test_logits_are_fp32_products_with_lm_head(tiny, close):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        model = tiny("u1", dtype)
        hidden = torch.randn(2, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
        ours = logits(model.understanding, hidden)
        assert ours.dtype == torch.float32
        assert close(ours, hidden.double() @ model.source.read(LM_HEAD).double().T, tolerance)


def test_bf16_is_near_fp32(kind, tiny, close):
    h, positions, segments = text_and_picture(tiny(kind))
    exact, *_ = understanding_pass(tiny(kind).config, tiny(kind).understanding, h, positions, segments)
    low = tiny(kind, torch.bfloat16)
    ours, k, _ = understanding_pass(low.config, low.understanding, h.bfloat16(), positions, segments)
    assert ours.dtype == k.dtype == torch.bfloat16
    assert close(ours, exact, 0.1 if kind == "a3b" else 0.05)  # a token on the edge goes to another expert


def test_grid_positions():
    positions = grid_positions([7, 12], 2, 3, torch.device("cpu"))
    assert positions.tolist() == [
        [7] * 6 + [12] * 6,
        [0, 0, 0, 1, 1, 1] * 2,
        [0, 1, 2, 0, 1, 2] * 2,
    ]
