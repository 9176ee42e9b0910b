"""Where a session's generation tower is to lie on its card: as it was asked, or as the budget allows for the work."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from u1_core.model.config import U1Config
from u1_core.plan.budget import Budget, free_bytes
from u1_core.plan.machine import model_here
from u1_core.plan.plan import Plan
from u1_core.plan.planner import choose_plan
from u1_core.plan.work import SamplingWork, Work, ends_bytes
from u1_core.weights.placement import Placement

SPENT = 0.9
"""Share of the budget that may be planned for."""


@dataclass
class Placing:
    """The placement of a tower on a card, and how it is chosen. A `fixed` one stays."""

    config: U1Config
    dtype: torch.dtype
    device: torch.device
    budget: Budget
    placement: Placement | None = None
    copied_bytes: int = 0
    """Of a quantised layer across the bus."""
    fixed: bool = False
    pixels: int = 0
    """Of all rows of the largest pass that the placement has room for."""

    def plan(self, work: Work, loaded: bool, held: bool, already_bytes: int = 0) -> Plan:
        """The plan for this work beside whatever is on the card now, `already_bytes` of which belong to the work.

        `loaded`: the tower is on the card, as placed. `held`: it has to stay so. Raises U1Error where the budget is too
        small.
        """
        model = model_here(self.device, work)
        gc.collect()  # what only waits to be found unused is nobody's
        others = torch.cuda.memory_allocated(self.device) - already_bytes
        if loaded:
            others -= model.weights_bytes(self.placement) + ends_bytes(self.config, self.dtype)
        model = replace(model, fixed_bytes=model.fixed_bytes + max(0, others))
        stays = self.placement if held or self.fixed else None
        return choose_plan(model, self.budget, free_bytes(self.device), stays)

    def spare_bytes(self, plan: Plan) -> int:
        """What a plan leaves of the budget to speed up prompts, with a tenth kept back for LoRAs and what else comes.

        Nothing in the modes that save memory.
        """
        if self._thrifty:
            return 0
        limit = self.budget.n_bytes or free_bytes(self.device)
        return max(0, int(SPENT * limit) - plan.peak_bytes)

    def beside_others(self, n_bytes: float, own_bytes: int) -> int:
        """What is left of so much memory to speed up prompts, `own_bytes` of all that is on the card being theirs.

        Nothing in the modes that save memory.
        """
        if self._thrifty:
            return 0
        return max(0, int(n_bytes) - torch.cuda.memory_allocated(self.device) + own_bytes)

    @property
    def _thrifty(self) -> bool:
        return self.budget.mode in ("balanced", "low")

    def native_shape(self) -> tuple[int, int, int, int]:
        """One square picture of the size that the model is made for."""
        side = math.isqrt(self.config.native_tokens) * self.config.token_pixels
        return 1, 3, side, side

    def lacks_room(self, shape: Sequence[int], branches: int) -> bool:
        """Whether a pass of pictures (B, 3, H, W), each with so many branches, is more than the placement is for."""
        return not self.fixed and _pixels(shape, branches) > self.pixels

    def sampling_work(self, shape: Sequence[int], branches: int, prefix_tokens: int) -> SamplingWork:
        batch, _, height, width = shape
        return SamplingWork(
            config=self.config,
            dtype=self.dtype,
            width=width,
            height=height,
            batch=batch,
            branches=branches,
            prefix_tokens=prefix_tokens,
            copied_bytes=self.copied_bytes,
        )

    def made_for(self, shape: Sequence[int], branches: int) -> None:
        """The placement was chosen for such a pass: what one before it had room for says nothing any more."""
        self.pixels = _pixels(shape, branches)


def _pixels(shape: Sequence[int], branches: int) -> int:
    batch, _, height, width = shape
    return batch * branches * height * width
