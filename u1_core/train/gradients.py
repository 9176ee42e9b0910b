"""Gradients of several micro-batches, added up in a fixed order.

Autograd adds the gradients of one backward in the order in which they come, and those of several backwards one after
the other; so sums of floating-point numbers would depend on how many micro-batches go through a layer together, which
is the plan's choice. Here every micro-batch has stand-ins for the weights, and what they are given is added to the
weights' own gradients in the order of the micro-batches, whichever comes first: the plan cannot change a bit of it.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor


class GradientSum:
    """The sum, over the micro-batches of a step, of the gradients of some parameters."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """It is added to the parameters' `grad`."""
        self._parameters = parameters
        self._next = dict.fromkeys(parameters, 0)
        self._early: dict[tuple[str, int], Tensor] = {}

    def stand_ins(self, number: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves for micro-batch `number` of the step, counted from 0, one for each parameter.

        `values` are the parameters, or what they are in another dtype; the leaves share their memory.
        """
        leaves = {name: values[name].detach().requires_grad_() for name in self._parameters}
        for name, leaf in leaves.items():
            leaf.register_post_accumulate_grad_hook(partial(self._arrive, name, number))
        return leaves

    def finish(self) -> None:
        """Add what still waits for a micro-batch that gave that parameter no gradient."""
        for name, number in sorted(self._early):
            self._add(name, self._early.pop((name, number)))

    def _arrive(self, name: str, number: int, leaf: Tensor) -> None:
        self._early[name, number], leaf.grad = leaf.grad.to(self._parameters[name].dtype), None
        while (name, self._next[name]) in self._early:
            self._add(name, self._early.pop((name, self._next[name])))
            self._next[name] += 1

    def _add(self, name: str, gradient: Tensor) -> None:
        parameter = self._parameters[name]
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)
