import pytest
import torch

from u1_core.sample.schedule import sampling_timesteps


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 3.0, 3.3, 7.0, 11.5])
@pytest.mark.parametrize("steps", [1, 3, 8, 50])
def test_closed_form(steps, shift):
    ours = sampling_timesteps(steps, shift)
    assert ours.dtype == torch.float32
    expected = []
    for i in range(steps + 1):
        sigma = 1 - i / steps
        expected.append(1 - shift * sigma / (1 + (shift - 1) * sigma))
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=2e-7)
    assert (ours.diff() > 0).all()


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 3.0, 3.3, 7.0, 11.5])
def test_ends_are_exact(shift):
    """0 is in the guidance interval that starts at 0, and 1 leaves no noise."""
    ours = sampling_timesteps(7, shift)
    assert ours[0] == 0.0
    assert ours[-1] == 1.0


def test_shift_spends_steps_near_the_noise():
    assert (sampling_timesteps(50, 3.0) < 0.5).sum() == 38  # t < 1/2 where sigma > 1/4: steps 0 to 37
    assert (sampling_timesteps(50, 1.0) < 0.5).sum() == 25
