"""Text to image."""

from u1_core.sample.branches import Drawn, Query, draw_prompt
from u1_core.sample.euler import OnStep
from u1_core.sample.guidance import Branch
from u1_core.sample.settings import SampleSettings
from u1_core.sample.think import OnText
from u1_core.session import Session
from u1_core.text import prompts


def text_to_image(
    session: Session,
    prompt: str,
    settings: SampleSettings,
    think: bool = False,
    on_step: OnStep | None = None,
    on_text: OnText | None = None,
) -> Drawn:
    """Draw `settings.batch` pictures of `prompt`. Raises U1Error for settings the model cannot do."""
    settings.check(session.config)
    return draw_prompt(session, queries(prompt, think), settings, think, on_step, on_text)


def queries(prompt: str, think: bool = False) -> dict[Branch, Query]:
    """What each guidance branch is asked."""
    return {
        Branch.CONDITIONAL: (prompts.text_to_image(prompt, think), ()),
        Branch.UNCONDITIONAL: (prompts.unconditional(), ()),
    }
