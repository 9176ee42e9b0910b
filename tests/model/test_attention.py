import pytest
import torch
from torch import Tensor

from u1_core.model.attention import Segment, attend

HEADS, KV_HEADS, DIM = 4, 2, 8


def random_qkv(tokens: int, seed: int = 0, kv_heads: int = KV_HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, heads, DIM, generator=generator) for heads in (HEADS, kv_heads, kv_heads))


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention in fp64 with one mask, seen (queries, keys), head by head -> (queries, heads * dim)."""
    outputs = []
    for head in range(q.shape[1]):
        group = head * k.shape[1] // q.shape[1]
        scores = (q[:, head].double() @ k[:, group].double().T / DIM**0.5).masked_fill(~seen, -torch.inf)
        outputs.append(scores.softmax(-1) @ v[:, group].double())
    return torch.cat(outputs, -1)


def seen_by_time(t: Tensor) -> Tensor:
    """The mask of the understanding pass: what is before, and what shares one's t."""
    index = torch.arange(len(t))
    return (index <= index[:, None]) | (t == t[:, None])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_text_alone(close, kv_heads):
    q, k, v = random_qkv(9, kv_heads=kv_heads)
    ours = attend(q, k, v, [Segment(0, 9, keys=((0, 9),), causal=True)], ())
    assert close(ours, dense(q, k, v, seen_by_time(torch.arange(9))))


def test_text_a_picture_and_text(close):
    q, k, v = random_qkv(12)
    segments = [
        Segment(0, 4, keys=((0, 4),), causal=True),
        Segment(4, 9, keys=((0, 9),), causal=False),
        Segment(9, 12, keys=((0, 12),), causal=True),
    ]
    t = torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7])
    assert close(attend(q, k, v, segments, ()), dense(q, k, v, seen_by_time(t)))


@pytest.mark.parametrize("queries", [1, 5])
def test_text_after_a_past_in_two_parts(close, queries):
    q, k, v = random_qkv(queries)
    _, k_past, v_past = random_qkv(7, seed=1)
    past = [(k_past[:3], v_past[:3]), (k_past[3:], v_past[3:])]
    ours = attend(q, k, v, [Segment(0, queries, keys=((0, queries),), causal=True, past=0)], [past])
    seen = seen_by_time(torch.arange(7 + queries))[7:]
    assert close(ours, dense(q, torch.cat([k_past, k]), torch.cat([v_past, v]), seen))


def test_pictures_see_their_own_past_and_themselves(close):
    """Two pictures of four tokens packed together, each behind a prefix of its own."""
    q, k, v = random_qkv(8)
    pasts = [[random_qkv(n, seed=n)[1:]] for n in (3, 6)]
    segments = [Segment(4 * row, 4 * row + 4, ((4 * row, 4 * row + 4),), causal=False, past=row) for row in range(2)]
    ours = attend(q, k, v, segments, pasts)
    for row, [(k_past, v_past)] in enumerate(pasts):
        own = slice(4 * row, 4 * row + 4)
        keys, values = torch.cat([k_past, k[own]]), torch.cat([v_past, v[own]])
        assert close(ours[own], dense(q[own], keys, values, torch.ones(4, len(keys), dtype=torch.bool)))


def test_a_packed_head_that_two_tails_share(close):
    """Tokens 0-4 are a head, 5-7 and 8-9 continue it: neither tail sees the other."""
    q, k, v = random_qkv(10)
    segments = [
        Segment(0, 5, keys=((0, 5),), causal=True),
        Segment(5, 8, keys=((0, 5), (5, 8)), causal=True),
        Segment(8, 10, keys=((0, 5), (8, 10)), causal=True),
    ]
    index = torch.arange(10)
    seen = index <= index[:, None]
    seen[8:, 5:8] = False
    assert close(attend(q, k, v, segments, ()), dense(q, k, v, seen))


def test_keys_of_others_change_nothing():
    q, k, v = random_qkv(6)
    segments = [Segment(0, 3, keys=((0, 3),), causal=True), Segment(3, 6, keys=((3, 6),), causal=True)]
    before = attend(q, k, v, segments, ())
    k[3:], v[3:] = 100.0, -100.0
    after = attend(q, k, v, segments, ())
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])
