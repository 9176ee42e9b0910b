import pytest
import torch

from u1_core.errors import U1Error
from u1_core.sample.guidance import Branch, Guidance

C, I, U = Branch.CONDITIONAL, Branch.TEXT_FREE, Branch.UNCONDITIONAL  # noqa: E741
SIDE = 8
"""Pixels along one side of a token."""


def velocities(*branches: Branch) -> dict[Branch, torch.Tensor]:
    """Random velocities of two pictures of 2 x 3 tokens. The conditional one is the smallest."""
    generator = torch.Generator().manual_seed(0)
    sizes = {C: 0.5, I: 0.8, U: 1.0}
    return {branch: sizes[branch] * torch.randn(2, 3, 2 * SIDE, 3 * SIDE, generator=generator) for branch in branches}


def at(t: float) -> torch.Tensor:
    return torch.tensor(t)


@pytest.mark.parametrize(
    ("pictures", "cfg", "image_cfg", "branches"),
    [
        (False, 4.0, 1.0, (C, U)),
        (False, 1.0, 1.0, (C,)),
        (False, 0.5, 1.0, (C,)),
        (False, 1.0, 4.0, (C,)),
        (True, 1.0, 1.0, (C,)),
        (True, 4.0, 1.0, (C, I)),
        (True, 0.5, 1.0, (C, I)),
        (True, 3.0, 3.0, (C, U)),
        (True, 4.0, 2.0, (C, I, U)),
        (True, 1.0, 2.0, (C, I, U)),
    ],
)
def test_branches(pictures, cfg, image_cfg, branches):
    assert Guidance(cfg, image_cfg, pictures=pictures).branches == branches


@pytest.mark.parametrize(
    ("t", "guided"), [(0.0, False), (0.0999, False), (0.1, True), (0.3, True), (0.6, True), (0.6001, False)]
)
def test_interval_of_text_to_image_holds_both_ends(t, guided):
    assert Guidance(interval=(0.1, 0.6)).branches_at(at(t)) == ((C, U) if guided else (C,))


@pytest.mark.parametrize(("t", "guided"), [(0.0, False), (0.25, False), (0.3, True), (0.5, False), (0.7, False)])
def test_interval_with_pictures_leaves_both_ends_out(t, guided):
    branches = Guidance(interval=(0.25, 0.5), pictures=True).branches_at(at(t))
    assert branches == ((C, I) if guided else (C,))


@pytest.mark.parametrize("t", [0.0, 0.25, 0.9])
def test_with_pictures_an_interval_from_0_is_always(t):
    assert Guidance(interval=(0.0, 0.25), pictures=True).branches_at(at(t)) == (C, I)


def test_whole_interval_guides_every_step():
    for pictures in (False, True):
        for t in (0.0, 0.5, 0.99):
            assert len(Guidance(pictures=pictures).branches_at(at(t))) == 2


def test_one_branch_is_taken_as_it_is():
    v = velocities(C)
    assert Guidance(norm="global").combine(v, False, SIDE) is v[C]


@pytest.mark.parametrize("pictures", [False, True])
def test_two_branches(pictures, close):
    """Text to image against the unconditional branch, edits against the one without text."""
    v = velocities(C, I if pictures else U)
    ours = Guidance(4.0, pictures=pictures).combine(v, False, SIDE)
    other = v[I if pictures else U]
    assert close(ours, other.double() + 4.0 * (v[C].double() - other.double()))


def test_equal_scales_of_text_and_pictures(close):
    v = velocities(C, U)
    ours = Guidance(3.0, 3.0, pictures=True).combine(v, False, SIDE)
    assert close(ours, v[U].double() + 3.0 * (v[C].double() - v[U].double()))


def test_three_branches(close):
    v = velocities(C, I, U)
    c, i, u = (v[branch].double() for branch in (C, I, U))
    ours = Guidance(4.0, 2.0, pictures=True).combine(v, False, SIDE)
    assert close(ours, u + 4.0 * (c - i) + 2.0 * (i - u))


@pytest.mark.parametrize("branches", [(C, U), (C, I, U)])
def test_global_norm(close, branches):
    v = velocities(*branches)
    guidance = {"cfg_scale": 4.0, "image_cfg_scale": 2.0, "pictures": len(branches) == 3}
    plain = Guidance(**guidance).combine(v, False, SIDE).double()
    ours = Guidance(**guidance, norm="global").combine(v, False, SIDE)
    for row in range(2):
        ratio = v[C][row].double().norm() / (plain[row].norm() + 1e-8)
        assert ratio < 1
        assert close(ours[row], plain[row] * ratio)


def test_channel_norm_is_token_by_token(close):
    v = velocities(C, U)
    v[C][0, :, :SIDE, :SIDE] *= 100  # here the conditional velocity is not the smaller one in every token
    v[U][0, :, :SIDE, :SIDE] = v[C][0, :, :SIDE, :SIDE] * 1.1
    plain = Guidance(4.0).combine(v, False, SIDE).double()
    ours = Guidance(4.0, norm="channel").combine(v, False, SIDE)
    expected, ratios = plain.clone(), []
    for picture in range(2):
        for row in range(2):
            for column in range(3):
                block = (
                    picture,
                    slice(None),
                    slice(row * SIDE, (row + 1) * SIDE),
                    slice(column * SIDE, (column + 1) * SIDE),
                )
                ratio = float(v[C][block].double().norm() / (plain[block].norm() + 1e-8))
                ratios.append(ratio)
                expected[block] = plain[block] * min(1.0, ratio)
    assert min(ratios) < 1 < max(ratios)
    assert close(ours, expected)


def test_norms_never_enlarge():
    v = velocities(C, U)
    v[U] = 1.2 * v[C]  # guided = 0.4 v_c: |v_c| / |guided| = 2.5
    for norm in ("global", "channel"):
        ours = Guidance(4.0, norm=norm).combine(v, False, SIDE)
        torch.testing.assert_close(ours, 0.4 * v[C], rtol=1e-4, atol=1e-5)


def test_norms_are_for_scales_above_1():
    """Edits with both scales at most 1 are guided, but not normed."""
    v = velocities(C, I)
    for norm in ("global", "channel"):
        ours = Guidance(0.2, norm=norm, pictures=True).combine(v, False, SIDE)
        assert torch.equal(ours, Guidance(0.2, pictures=True).combine(v, False, SIDE))


@pytest.mark.parametrize(("cfg", "image_cfg"), [(1.0, 2.0), (2.0, 1.0)])
def test_either_scale_above_1_is_enough(cfg, image_cfg):
    v = velocities(*Guidance(cfg, image_cfg, pictures=True).branches)
    ours, plain = (Guidance(cfg, image_cfg, norm, pictures=True).combine(v, False, SIDE) for norm in ("global", "none"))
    for row in range(2):
        assert plain[row].norm() > v[C][row].norm()
        assert ours[row].norm().item() == pytest.approx(v[C][row].norm().item(), rel=1e-5)


def test_zero_star(close):
    v = velocities(C, U)
    ours = Guidance(4.0, norm="cfg_zero_star").combine(v, False, SIDE)
    for row in range(2):
        c, u = v[C][row].double(), v[U][row].double()
        u = u * (c * u).sum() / ((u * u).sum() + 1e-8)
        assert close(ours[row], u + 4.0 * (c - u))


def test_zero_star_starts_with_nothing():
    v = velocities(C, U)
    ours = Guidance(4.0, norm="cfg_zero_star").combine(v, True, SIDE)
    assert torch.equal(ours, torch.zeros_like(v[C]))
    # Only a guided step is left out, and only by this norm.
    assert Guidance(4.0, norm="cfg_zero_star").combine({C: v[C]}, True, SIDE) is v[C]
    assert Guidance(4.0).combine(v, True, SIDE).abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"norm": "globl"},
            "guidance norm 'globl' is none of none, global, channel, cfg_zero_star; did you mean 'global'?",
        ),
        (
            {"norm": "cfg_zero_star", "pictures": True},
            "guidance norm 'cfg_zero_star' is for text to image only; use none, global or channel",
        ),
        ({"interval": (0.6, 0.1)}, "guidance interval (0.6, 0.1) must be two times from 0 to 1, the earlier first"),
        ({"interval": (0.0, 1.5)}, "guidance interval (0.0, 1.5) must be two times from 0 to 1, the earlier first"),
        ({"interval": (-0.1, 0.5)}, "guidance interval (-0.1, 0.5) must be two times from 0 to 1, the earlier first"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(U1Error) as raised:
        Guidance(**arguments)
    assert str(raised.value) == message
