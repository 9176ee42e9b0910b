from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from u1_core.model.generation import generation_pass
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.sample import euler
from u1_core.sample.euler import denoise, draw_noise
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.schedule import sampling_timesteps

CONFIG = SimpleNamespace(token_pixels=8)
PREFIXES = {branch: branch.value for branch in Branch}
"""Stand-ins: the fake network below only looks at which prefix it is given."""


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network(monkeypatch):
    """Puts a network in place that predicts a fixed picture for each prefix. Returns the calls it gets."""

    def install(pictures: dict[str, torch.Tensor]) -> list[SimpleNamespace]:
        calls = []

        def predict(config, weights, z, t, prefixes, terms):
            calls.append(SimpleNamespace(z=z, t=t, prefixes=list(prefixes), terms=terms))
            return torch.cat([pictures[prefix][None] for prefix in prefixes])

        monkeypatch.setattr(euler, "generation_pass", predict)
        return calls

    return install


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 3.0), (7, 0.5), (50, 3.0)])
def test_a_straight_flow_ends_at_the_predicted_picture(network, close, steps, shift):
    """If x_pred never changes the velocity is constant, and Euler is exact, however long the steps are."""
    target, noise = randn(3, 16, 24, seed=1), randn(2, 3, 16, 24)
    calls = network({"conditional": target})
    timesteps = sampling_timesteps(steps, shift)
    out = denoise(CONFIG, None, noise, PREFIXES, Guidance(1.0), timesteps, t_eps=1e-6)
    assert close(out, target.expand(2, -1, -1, -1).contiguous(), 1e-5)
    for call, t in zip(calls, timesteps, strict=False):
        assert torch.equal(call.t, t.expand(2))
        on_the_way = t * target + (1 - t) * noise
        assert close(call.z, on_the_way, 1e-5)
    assert len(calls) == steps


def test_guided_branches_run_as_one_batch(network, close):
    noise = randn(2, 3, 16, 24)
    pictures = {branch.value: randn(3, 16, 24, seed=seed) for seed, branch in enumerate(Branch, 1)}
    calls = network(pictures)
    guidance = Guidance(4.0, 2.0, pictures=True)
    out = denoise(CONFIG, None, noise, PREFIXES, guidance, sampling_timesteps(5, 3.0), terms="terms")
    assert [call.prefixes for call in calls] == [
        ["conditional", "conditional", "text-free", "text-free", "unconditional", "unconditional"]
    ] * 5
    assert {call.terms for call in calls} == {"terms"}
    c, i, u = (pictures[branch.value] for branch in (Branch.CONDITIONAL, Branch.TEXT_FREE, Branch.UNCONDITIONAL))
    expected = noise.double()
    times = sampling_timesteps(5, 3.0).double()
    for t, later in pairwise(times):
        v_c, v_i, v_u = ((x.double() - expected) / (1 - t) for x in (c, i, u))
        expected = expected + (later - t) * (v_u + 4 * (v_c - v_i) + 2 * (v_i - v_u))
    assert close(out, expected, 1e-5)


def test_steps_outside_the_interval_run_the_conditional_branch_alone(network, close):
    noise = randn(1, 3, 16, 24)
    pictures = {branch.value: randn(3, 16, 24, seed=seed) for seed, branch in enumerate(Branch, 1)}
    calls = network(pictures)
    timesteps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    out = denoise(CONFIG, None, noise, PREFIXES, Guidance(4.0, interval=(0.25, 0.5)), timesteps)
    one, both = ["conditional"], ["conditional", "unconditional"]
    assert [call.prefixes for call in calls] == [one, both, both, one]
    expected, c, u = noise.double(), pictures["conditional"].double(), pictures["unconditional"].double()
    for t, guided in ((0.0, False), (0.25, True), (0.5, True), (0.75, False)):
        target = u + 4 * (c - u) if guided else c
        expected = expected + 0.25 * (target - expected) / (1 - t)
    assert close(out, expected, 1e-5)


def test_the_floor_of_what_remains(network, close):
    """Steps to 0.99 and then to 1: the last velocity is divided by 0.02, not by 0.01, and goes half the way."""
    target, noise = randn(3, 16, 24, seed=1), randn(1, 3, 16, 24)
    network({"conditional": target})
    seen = []
    timesteps = torch.tensor([0.0, 0.99, 1.0])
    out = denoise(CONFIG, None, noise, PREFIXES, Guidance(1.0), timesteps, on_step=seen.append)
    before = 0.99 * target + 0.01 * noise
    assert close(out, 0.5 * (before + target), 1e-5)
    assert close(seen[1].x_pred, 0.5 * (before + target), 1e-5)


def test_watchers_see_where_each_step_heads(network, close):
    noise, target = randn(1, 3, 16, 24), randn(3, 16, 24, seed=1)
    network({"conditional": target, "unconditional": torch.zeros(3, 16, 24)})
    seen = []
    denoise(CONFIG, None, noise, PREFIXES, Guidance(4.0), sampling_timesteps(3, 3.0), on_step=seen.append)
    assert [(step.index, step.steps) for step in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [step.t for step in seen] == sampling_timesteps(3, 3.0)[:3].tolist()
    for step in seen:
        assert close(step.x_pred, 4 * target[None], 1e-5)


def test_the_state_does_not_change_the_noise_it_is_given(network):
    noise = randn(1, 3, 16, 24)
    before = noise.clone()
    network({"conditional": torch.zeros(3, 16, 24)})
    denoise(CONFIG, None, noise, PREFIXES, Guidance(1.0), sampling_timesteps(3, 3.0))
    assert torch.equal(noise, before)


def test_with_the_real_network(kind, tiny, close):
    """Branches in one batch, step by step, against a pass for each branch and the formulas written out in fp64."""
    model = tiny(kind)
    side = model.config.token_pixels

    def prefix(tokens: int) -> PrefixKV:
        return PrefixKV((KVChunk(*randn(2, 3, tokens, 2, 16, seed=tokens)),), tokens)

    prefixes = {Branch.CONDITIONAL: prefix(9), Branch.UNCONDITIONAL: prefix(4)}
    noise, times = randn(2, 3, 2 * side, 3 * side), sampling_timesteps(3, 3.0)
    out = denoise(model.config, model.generation, noise, prefixes, Guidance(4.0), times)
    z = noise.double()
    for t, later in pairwise(times):
        v = {}
        for branch, own in prefixes.items():
            x = generation_pass(model.config, model.generation, z.float(), t.expand(2), [own, own]).double()
            v[branch] = (x - z) / max(1 - float(t), 0.02)
        v_c, v_u = v.values()
        z = z + (later - t).double() * (v_u + 4.0 * (v_c - v_u))
    assert close(out, z, 1e-5)


def test_noise_is_drawn_and_scaled_in_the_models_dtype(tiny):
    config = tiny("u1").config  # 8 pixels a token, 64 base tokens
    for dtype in (torch.float32, torch.bfloat16):
        ours = draw_noise(config, (2, 3, 32, 64), torch.Generator().manual_seed(5), dtype)
        generator = torch.Generator().manual_seed(5)
        expected = torch.randn((2, 3, 32, 64), generator=generator, dtype=dtype) * (32 / 64) ** 0.5
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected.float())


def test_noise_of_several_pictures_from_one_generator(tiny):
    config, generator = tiny("u1").config, torch.Generator().manual_seed(5)
    first, second = (draw_noise(config, (1, 3, 64, 64), generator, torch.float32) for _ in range(2))
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(1.0, abs=0.02)
    again = draw_noise(config, (1, 3, 64, 64), torch.Generator().manual_seed(5), torch.float32)
    assert torch.equal(first, again)


def test_each_picture_may_have_a_prompt_of_its_own(network, close):
    """One prefix for all pictures of the unconditional branch, one for each of the conditional."""
    pictures = {name: randn(3, 16, 24, seed=seed) for seed, name in enumerate(("tree", "house", "nothing"), 1)}
    calls = network(pictures)
    prefixes = {Branch.CONDITIONAL: ["tree", "house"], Branch.UNCONDITIONAL: "nothing"}
    noise, times = randn(2, 3, 16, 24), sampling_timesteps(3, 3.0)
    together = denoise(CONFIG, None, noise, prefixes, Guidance(4.0), times)
    assert [call.prefixes for call in calls] == [["tree", "house", "nothing", "nothing"]] * 3
    for row, own in enumerate(("tree", "house")):
        prefixes = {Branch.CONDITIONAL: own, Branch.UNCONDITIONAL: "nothing"}
        assert close(
            together[row : row + 1], denoise(CONFIG, None, noise[row : row + 1], prefixes, Guidance(4.0), times)
        )
