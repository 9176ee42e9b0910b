import pytest
import torch

from u1_core.train.objective import flow_loss, velocity


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x_pred, x0, noise = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3))
    t = torch.tensor([0.3, 0.9])
    return x_pred, x0, t[:, None, None, None] * x0 + (1 - t)[:, None, None, None] * noise, t, noise


def test_the_true_velocity_is_x0_minus_noise(batch):
    _, x0, z, t, noise = batch
    torch.testing.assert_close(velocity(x0, z, t, 0.05), x0 - noise, rtol=1e-4, atol=1e-5)


def test_v_loss_is_x0_loss_over_one_minus_t_squared(batch):
    x_pred, x0, z, t, _ = batch
    by_picture = [flow_loss("x0", x_pred[i : i + 1], x0[i : i + 1], z[i : i + 1], t[i : i + 1], 0.05) for i in (0, 1)]
    expected = sum(loss / (1 - t[i]) ** 2 for i, loss in enumerate(by_picture)) / 2
    torch.testing.assert_close(flow_loss("v", x_pred, x0, z, t, 0.05), expected, rtol=1e-5, atol=0)


def test_t_eps_bounds_the_weight_near_the_clean_picture(batch):
    x_pred, x0, _, _, _ = batch
    t = torch.ones(2)
    loss = flow_loss("v", x_pred, x0, x0, t, 0.05)
    torch.testing.assert_close(loss, flow_loss("x0", x_pred, x0, x0, t, 0.05) * 400, rtol=1e-5, atol=0)


def test_huber_is_half_squared_within_delta_and_linear_beyond():
    x0, t = torch.zeros(1, 3, 1, 1), torch.tensor([0.5])
    x_pred = torch.tensor([0.1, -0.4, 2.0]).reshape(1, 3, 1, 1)
    expected = (0.5 * 0.1**2 + 0.5 * 0.4**2 + 0.5 * (2.0 - 0.25)) / 3
    assert flow_loss("x0_huber", x_pred, x0, x0, t, 0.05, 0.5).item() == pytest.approx(expected, rel=1e-6)
    # The velocity's errors are twice as large at t = 0.5, and delta is measured against them.
    expected = (0.5 * 0.2**2 + 0.5 * (0.8 - 0.25) + 0.5 * (4.0 - 0.25)) / 3
    assert flow_loss("v_huber", x_pred, x0, x0, t, 0.05, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_losses_and_gradients_are_fp32_whatever_the_prediction_is(batch):
    x_pred, x0, z, t, _ = batch
    x_pred = x_pred.bfloat16().requires_grad_()
    loss = flow_loss("v", x_pred, x0, z, t, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32
    assert x_pred.grad.abs().sum() > 0


@pytest.mark.parametrize("loss_type", ["x0", "v", "x0_huber", "v_huber"])
def test_weights_make_the_loss_the_mean_over_what_they_cover(loss_type):
    numbers = torch.Generator().manual_seed(0)
    x_pred, x0, z = (torch.randn(2, 3, 4, 6, generator=numbers) for _ in range(3))
    t = torch.tensor([0.3, 0.6])
    weights = torch.zeros(2, 4, 6)
    weights[0, :, :3] = 1.0
    weights[1, 2:] = 0.25  # the mean is relative: so is a weight
    loss = flow_loss(loss_type, x_pred, x0, z, t, 0.02, 0.7, weights)
    first = flow_loss(loss_type, *(x[:1, :, :, :3] for x in (x_pred, x0, z)), t[:1], 0.02, 0.7)
    second = flow_loss(loss_type, *(x[1:, :, 2:] for x in (x_pred, x0, z)), t[1:], 0.02, 0.7)
    torch.testing.assert_close(loss, (first + second) / 2)
    whole = flow_loss(loss_type, x_pred, x0, z, t, 0.02, 0.7, torch.ones(2, 4, 6))
    torch.testing.assert_close(whole, flow_loss(loss_type, x_pred, x0, z, t, 0.02, 0.7))
