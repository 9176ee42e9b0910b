import pytest
import torch

from u1_core.model.rope import frequencies, norm_and_rotate, partners, rms_norm, rope_table


def test_rms_norm_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    out = rms_norm(x, torch.tensor([1.0, 2.0]), eps=0.0625)
    root = (12.5 + 0.0625) ** 0.5
    torch.testing.assert_close(out, torch.tensor([[3 / root, 8 / root], [0.0, 0.0]]))


def test_rms_norm_statistics_are_fp32():
    """In bf16, squares of numbers near 200 overflow no exponent but lose the mean: fp32 keeps it."""
    x = (torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) + 200).bfloat16()
    out = rms_norm(x, torch.ones(512, dtype=torch.bfloat16), 1e-6)
    exact = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())


def test_frequencies_closed_form():
    expected = torch.tensor([5e6 ** (-2 * i / 64) for i in range(32)])
    torch.testing.assert_close(frequencies(64, 5e6, torch.device("cpu")), expected)


def test_table_splits_the_head_in_a_half_and_two_quarters(tiny):
    config = tiny("u1").config
    cos, sin = rope_table(config, torch.tensor([[5], [2], [3]]))
    assert cos.shape == sin.shape == (1, 1, 16)
    freq_t = [5e6 ** (-2 * i / 8) for i in range(4)]
    freq_hw = [1e4 ** (-2 * i / 4) for i in range(2)]
    angles = [5 * f for f in freq_t] * 2 + [2 * f for f in freq_hw] * 2 + [3 * f for f in freq_hw] * 2
    torch.testing.assert_close(cos.flatten(), torch.tensor(angles).cos())
    signs = torch.tensor([-1] * 4 + [1] * 4 + [-1] * 2 + [1] * 2 + [-1] * 2 + [1] * 2)
    torch.testing.assert_close(sin.flatten(), signs * torch.tensor(angles).sin())


def test_partners_are_half_a_part_away():
    found = partners(16, torch.device("cpu"))
    assert found.tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 10, 11, 8, 9, 14, 15, 12, 13]


def test_norm_and_rotate_equals_each_axis_by_itself(tiny, naive_turn, close):
    config = tiny("u1").config
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 4, 16, generator=generator)
    weight = torch.rand(2, 8, generator=generator) + 0.5
    positions = torch.randint(0, 40, (3, 7), generator=generator)
    halves = x.double().unflatten(-1, (2, 8))
    normed = halves / (halves.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    expected = naive_turn(normed.flatten(-2), positions, config)
    assert close(norm_and_rotate(x, weight, 1e-6, rope_table(config, positions)), expected)


@pytest.mark.parametrize("axis", range(3))
def test_scores_depend_on_differences_of_positions(tiny, axis, close):
    config = tiny("u1").config
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(2))
    weight = torch.ones(2, 8)

    def score(at_q: int, at_k: int) -> torch.Tensor:
        turned = []
        for x, at in ((q, at_q), (k, at_k)):
            positions = torch.full((3, 1), 4)
            positions[axis] = at
            turned.append(norm_and_rotate(x, weight, 1e-6, rope_table(config, positions)))
        return (turned[0] * turned[1]).sum()[None]

    assert close(score(9, 2), score(27, 20), 1e-5)
    assert not close(score(9, 2), score(9, 3), 1e-3)


def test_tables_stay_fp32_beside_bf16(tiny):
    """At t = 1000 a bf16 angle would be off by whole radians."""
    config = tiny("u1").config
    rope = rope_table(config, torch.tensor([[1000], [0], [0]]))
    x = torch.ones(1, 1, 16, dtype=torch.bfloat16)
    out = norm_and_rotate(x, torch.ones(2, 8, dtype=torch.bfloat16), 0.0, rope)
    assert out.dtype == torch.bfloat16
    expected = torch.tensor(1000.0).double().cos() - torch.tensor(1000.0).double().sin()
    assert abs(out[0, 0, 0].double() - expected) < 2**-8
