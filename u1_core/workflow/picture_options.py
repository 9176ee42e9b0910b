"""The inputs that every node that draws has in common, and the settings they mean."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps

from u1_core.data.buckets import INTERLEAVE, TEXT_TO_IMAGE, parse_size
from u1_core.model.config import U1Config
from u1_core.sample.settings import SampleSettings, settings_for
from u1_core.workflow.handles import Result

RATIOS = tuple(TEXT_TO_IMAGE)
CUSTOM_SIZE = "width x height"
LIKE_INPUT = "like the input"


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are drawn, as nodes are asked it."""

    size: str = "1:1"
    """A ratio, CUSTOM_SIZE, or LIKE_INPUT where there is an input picture."""
    width: int = 2048
    height: int = 2048
    megapixels: float = 0.0
    """Area of a ratio in units of 1024 x 1024; 0 is the model's own."""
    steps: int = 50
    cfg: float = 4.0
    image_cfg: float = 1.0
    seed: int = 42
    batch: int = 1
    norm: str = "none"
    interval_from: float = 0.0
    interval_to: float = 1.0
    shift: float = 3.0

    def sides(self, config: U1Config) -> tuple[int, int]:
        """(width, height): a ratio at the model's own area or at `megapixels`, or the sides as they are given."""
        return self._sides(config, TEXT_TO_IMAGE, config.native_pixels)

    def sides_between_text(self, config: U1Config) -> tuple[int, int]:
        """The same for pictures in a text, which are smaller: 9/16 of the model's own area."""
        return self._sides(config, INTERLEAVE, config.native_pixels * 9 // 16)

    def pixels(self, otherwise: int) -> int:
        """The area that is asked for."""
        return round(self.megapixels * 2**20) or otherwise

    def settings(self, sides: tuple[int, int]) -> SampleSettings:
        """For pictures of `sides` (width, height)."""
        interval = (self.interval_from, self.interval_to)
        return settings_for(
            sides, self.steps, self.cfg, self.image_cfg, self.norm, interval, self.shift, self.seed, self.batch
        )

    def _sides(self, config: U1Config, ratios: dict[str, tuple[int, int]], own_pixels: int) -> tuple[int, int]:
        if self.size == CUSTOM_SIZE:
            return self.width, self.height
        return parse_size(self.size, config.token_pixels, ratios, self.pixels(own_pixels))


def draws(**defaults: str | int) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A node that draws: every field of `PictureOptions`, if it has none of that name itself, is an input of it and
    comes to it in `how`."""
    base = PictureOptions(**defaults)

    def wrap(node: Callable[..., Result]) -> Callable[..., Result]:
        parameters = inspect.signature(node).parameters
        names = [field.name for field in fields(PictureOptions) if field.name not in parameters]

        @wraps(node)
        def drawing_node(*places, **inputs) -> Result:
            chosen = {name: inputs.pop(name) for name in names if name in inputs}
            return node(*places, how=replace(base, **chosen), **inputs)

        own = [one for name, one in parameters.items() if name != "how"]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(name, keyword, default=getattr(base, name)) for name in names]
        drawing_node.__signature__ = inspect.Signature([*own, *shared])
        return drawing_node

    return wrap
