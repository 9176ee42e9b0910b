"""What a picture is made with, apart from the prompt."""

from dataclasses import dataclass, field

from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.sample.euler import T_EPS
from u1_core.sample.guidance import Guidance


@dataclass(frozen=True)
class SampleSettings:
    """Sizes are pixels; the defaults are the released model's."""

    width: int = 2048
    height: int = 2048
    steps: int = 50
    shift: float = 3.0
    """Timestep shift: above 1, more of the steps are spent near the noise."""
    seed: int = 42
    batch: int = 1
    t_eps: float = T_EPS
    """Floor of 1 - t in the velocity."""
    guidance: Guidance = field(default_factory=Guidance)

    def check(self, config: U1Config) -> None:
        """Raise U1Error for what cannot be sampled with this model."""
        side = config.token_pixels
        for name, value in (("width", self.width), ("height", self.height)):
            if value < side or value % side:
                lower = max(side, value // side * side)
                raise U1Error(f"{name} {value} is not a multiple of {side}; try {lower} or {lower + side}")
        for name, value in (("steps", self.steps), ("batch", self.batch), ("shift", self.shift)):
            if value <= 0:
                raise U1Error(f"{name} {value} must be above 0")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, 3, self.height, self.width


def settings_for(
    sides: tuple[int, int],
    steps: int,
    cfg: float,
    image_cfg: float = 1.0,
    norm: str = "none",
    interval: tuple[float, float] = (0.0, 1.0),
    shift: float = 3.0,
    seed: int = 42,
    batch: int = 1,
) -> SampleSettings:
    """Settings from what people are asked, one by one; `sides` is (width, height)."""
    return SampleSettings(*sides, steps, shift, seed, batch, guidance=Guidance(cfg, image_cfg, norm, interval))
