"""Edit: change one to ten pictures as a prompt says."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from u1_core.data.pictures import smart_resize, understanding_patches
from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.sample.branches import Drawn, draw_prompt
from u1_core.sample.euler import OnStep
from u1_core.sample.guidance import Branch
from u1_core.sample.settings import SampleSettings
from u1_core.sample.think import OnText
from u1_core.session import Session
from u1_core.text import prompts
from u1_core.text.sequence import PicturePatches

MAX_PICTURES = 10


def input_limits(config: U1Config, pictures: int) -> tuple[int, int]:
    """Fewest and most pixels that each of that many input pictures keeps.

    In the released models 512² and 2048², with 4096² for all of them together.
    """
    return config.native_pixels // 16, min(config.native_pixels, 4 * config.native_pixels // max(1, pictures))


def input_patches(
    config: U1Config, pictures: Sequence[Image.Image], limits: tuple[int, int]
) -> tuple[PicturePatches, ...]:
    """Input pictures as the understanding tower sees them, resized into `limits` (fewest, most pixels)."""
    return tuple(understanding_patches(picture, config, *limits) for picture in pictures)


def at_full_budget(config: U1Config, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Input pictures scaled, up too, to all the pixels that an edit can read: small ones make blurred edits.

    As the released editing script does: the model's own size for each of two, twice that shared by more.
    """
    pixels = min(config.native_pixels, 2 * config.native_pixels // len(pictures))
    scaled = []
    for picture in pictures:
        height, width = smart_resize(picture.height, picture.width, config.token_pixels, pixels, pixels)
        scaled.append(picture.resize((width, height), Image.Resampling.LANCZOS))
    return scaled


def edit(
    session: Session,
    prompt: str,
    pictures: Sequence[Image.Image],
    settings: SampleSettings,
    think: bool = False,
    limits: tuple[int, int] | None = None,
    on_step: OnStep | None = None,
    on_text: OnText | None = None,
) -> Drawn:
    """Draw what `prompt` makes of `pictures`. The inputs are scaled to `at_full_budget` first; with
    `limits` (fewest, most pixels) they are only brought within these."""
    if not 1 <= len(pictures) <= MAX_PICTURES:
        raise U1Error(f"edit takes 1 to {MAX_PICTURES} pictures, not {len(pictures)}")
    settings = replace(settings, guidance=replace(settings.guidance, pictures=True))
    settings.check(session.config)
    if limits is None:
        pictures, limits = at_full_budget(session.config, pictures), input_limits(session.config, len(pictures))
    patches = input_patches(session.config, pictures, limits)
    queries = {
        Branch.CONDITIONAL: (prompts.edit(prompt, len(pictures), think), patches),
        Branch.TEXT_FREE: (prompts.edit_text_free(len(pictures)), patches),
        Branch.UNCONDITIONAL: (prompts.unconditional(), ()),
    }
    return draw_prompt(session, queries, settings, think, on_step, on_text)
