"""Trained tensors in one piece of memory, for optimizers that update one tensor after the other.

A LoRA has some six hundred of them, and the 8-bit optimizer starts a kernel for each, with the card waiting in between.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale in 8-bit states: each tensor begins a block of its own, as if it were alone."""


class OnePiece:
    """Moves some leaves, and their gradients, into one tensor each; they stay leaves, as views of it."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        """`leaves` are fp32, on one device."""
        sizes = [-(-leaf.numel() // BLOCK) * BLOCK for leaf in leaves]
        self._leaves = leaves
        self.parameter = leaves[0].new_zeros(sum(sizes)).requires_grad_()
        self.parameter.grad = torch.zeros_like(self.parameter)
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._gradients = [
            self.parameter.grad[start : start + leaf.numel()].view_as(leaf)
            for start, leaf in zip(starts, leaves, strict=True)
        ]
        for start, leaf in zip(starts, leaves, strict=True):
            place = self.parameter.detach()[start : start + leaf.numel()].view_as(leaf)
            leaf.data = place.copy_(leaf.detach())
        self.zero_grad()

    def zero_grad(self) -> None:
        """Gradients are zero, and in their place: what comes is added there."""
        self.parameter.grad.zero_()
        for leaf, gradient in zip(self._leaves, self._gradients, strict=True):
            leaf.grad = gradient
