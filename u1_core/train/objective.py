"""The training loss: how far the predicted picture, or the velocity it implies, is from the true one.

z_t = t * x0 + (1 - t) * noise, so the velocity towards x0 is (x0 - z_t) / (1 - t); the network predicts x0 itself.
Means over all pixels equal means over patches, whichever way a picture is cut.
"""

import torch.nn.functional as F
from torch import Tensor


def velocity(x: Tensor, z: Tensor, t: Tensor, t_eps: float) -> Tensor:
    """(x - z) / max(1 - t, t_eps). x and z (B, 3, H, W), t (B,), all fp32."""
    return (x - z) / (1.0 - t).clamp(min=t_eps)[:, None, None, None]


def flow_losses(
    loss_type: str,
    x_pred: Tensor,
    x0: Tensor,
    z: Tensor,
    t: Tensor,
    t_eps: float,
    huber_delta: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss of each picture, (B,) in fp32. `loss_type`: "x0", "v", "x0_huber" or "v_huber".

    Pictures are (B, 3, H, W) in [-1, 1], t (B,). With d = 1 - t no smaller than t_eps, v is x0 / d²; the Huber losses
    are squared (halved) up to an error of `huber_delta` and linear beyond. With `weights` (B, H, W) a picture's loss is
    the mean weighed by them, so that a small mask counts as much as a large one.
    """
    prediction, target = x_pred.float(), x0
    if loss_type.startswith("v"):
        prediction, target = velocity(prediction, z, t, t_eps), velocity(target, z, t, t_eps)
    if loss_type.endswith("huber"):
        loss = F.huber_loss(prediction, target, delta=huber_delta, reduction="none")
    else:
        loss = F.mse_loss(prediction, target, reduction="none")
    if weights is None:
        return loss.mean((1, 2, 3))
    return (loss.mean(1) * weights).sum((1, 2)) / weights.sum((1, 2))


def flow_loss(
    loss_type: str,
    x_pred: Tensor,
    x0: Tensor,
    z: Tensor,
    t: Tensor,
    t_eps: float,
    huber_delta: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean of `flow_losses`, a scalar in fp32."""
    return flow_losses(loss_type, x_pred, x0, z, t, t_eps, huber_delta, weights).mean()
