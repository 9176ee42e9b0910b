"""Text to image."""

from u1_core.sample.branches import Drawn, draw_prompt
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
    queries = {
        Branch.CONDITIONAL: (prompts.text_to_image(prompt, think), ()),
        Branch.UNCONDITIONAL: (prompts.unconditional(), ()),
    }
    return draw_prompt(session, queries, settings, think, on_step, on_text)
