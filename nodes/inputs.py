"""Inputs as the schemas of nodes have them: short words for ComfyUI's own, and those that all nodes that draw share."""

from comfy_api.latest import io

from u1_core.sample.guidance import NORMS
from u1_core.workflow.picture_options import CUSTOM_SIZE, RATIOS, PictureOptions

MOST_STEPS = 1_000_000
LAST_SEED = 2**63 - 1
SIZE = ("size", "width", "height", "megapixels")
GUIDANCE = ("norm", "interval_from", "interval_to")


def text(name: str, tooltip: str, default: str = "", lines: bool = False, **more) -> io.Input:
    return io.String.Input(name, default=default, multiline=lines, tooltip=tooltip, **more)


def integer(name: str, default: int, least: int, most: int, tooltip: str, **more) -> io.Input:
    return io.Int.Input(name, default=default, min=least, max=most, tooltip=tooltip, **more)


def number(name: str, default: float, least: float, most: float, step: float, tooltip: str, **more) -> io.Input:
    return io.Float.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip, **more)


def switch(name: str, default: bool, tooltip: str, **more) -> io.Input:
    return io.Boolean.Input(name, default=default, tooltip=tooltip, **more)


def choice(name: str, options: list[str], tooltip: str, default: str | None = None, **more) -> io.Input:
    return io.Combo.Input(
        name, options=options, default=options[0] if default is None else default, tooltip=tooltip, **more
    )


def picture_inputs(
    *names: str, own: str = "the model's own size", more_sizes: tuple[str, ...] = (), **defaults: str | int
) -> list[io.Input]:
    """Inputs for these fields of `PictureOptions`. `own` says in words what size a ratio has where no area is asked
    for."""
    base = PictureOptions(**defaults)
    made = {
        "size": choice(
            "size",
            [*more_sizes, *RATIOS, CUSTOM_SIZE],
            f"A ratio that the model was trained at, at {own}, or the width and height below.",
            base.size,
        ),
        "width": integer("width", base.width, 8, 8192, f"Used when size is {CUSTOM_SIZE}.", step=8, advanced=True),
        "height": integer("height", base.height, 8, 8192, f"Used when size is {CUSTOM_SIZE}.", step=8, advanced=True),
        "megapixels": number(
            "megapixels",
            base.megapixels,
            0.0,
            16.0,
            0.25,
            f"Area of a ratio in units of 1024x1024 pixels; 0 is {own}.",
            advanced=True,
        ),
        "steps": integer("steps", base.steps, 1, 200, "Steps; 8 with the 8-step LoRA."),
        "cfg": number("cfg", base.cfg, 1.0, 30.0, 0.1, "Guidance scale; 1 with the 8-step LoRA."),
        "image_cfg": number(
            "image_cfg", base.image_cfg, 0.0, 30.0, 0.1, "Guidance scale of the pictures.", advanced=True
        ),
        "seed": seed("Fixes the noise: the same seed gives the same picture.", base.seed),
        "batch": integer("batch", base.batch, 1, 16, "Pictures at once, from one seed."),
        "norm": choice("norm", list(NORMS), "How guidance is held back in norm.", base.norm, advanced=True),
        "interval_from": _end("interval_from", base.interval_from, "from"),
        "interval_to": _end("interval_to", base.interval_to, "up to"),
        "shift": number("shift", base.shift, 0.1, 20.0, 0.1, "More of the steps near the noise.", advanced=True),
    }
    return [made[name] for name in names]


def seed(tooltip: str, default: int = 42, changes: bool = True) -> io.Input:
    """`changes`: ComfyUI offers to count it up or draw it anew after each prompt."""
    return integer("seed", default, 0, LAST_SEED, tooltip, control_after_generate=changes)


def think() -> io.Input:
    return switch("think", False, "Let the model reason in words before it draws.")


def _end(name: str, default: float, words: str) -> io.Input:
    return number(name, default, 0.0, 1.0, 0.05, f"Guide {words} this t; 0 is noise.", advanced=True)
