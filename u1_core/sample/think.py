"""Think mode: the model reasons in words before it draws."""

from collections.abc import Callable

from u1_core.model.views import PrefixKV
from u1_core.prefix.build import BuiltPrefix
from u1_core.session import Session
from u1_core.text.tokenizer import TextStream
from u1_core.understand.decode import TextSettings, peek, say

MAX_THINK_TOKENS = 1024
OnText = Callable[[str], None]
"""Called with each piece of text as it is said; a line's end is the last."""


def think_first(
    session: Session, built: BuiltPrefix, on_text: OnText | None = None, max_tokens: int = MAX_THINK_TOKENS
) -> tuple[PrefixKV, str]:
    """The prompt's prefix with the reasoning behind it, and the reasoning.

    Greedy, up to `max_tokens`, until `</think>` (which is kept) or the end of the turn; then a blank line and `<img>`.
    """
    tokenizer, weights, prefix = session.tokenizer, session.understanding, session.grow(built)
    stream, ids = TextStream(tokenizer), []
    tell = on_text or (lambda text: None)
    stops = frozenset({tokenizer.im_end, tokenizer.think_end})
    for token in say(weights, prefix, stops, TextSettings(max_tokens=max_tokens)):
        ids.append(token)
        tell(stream.feed(token))
    if len(ids) < max_tokens and peek(weights, prefix) == tokenizer.think_end:
        prefix.append_text([tokenizer.think_end])
        ids.append(tokenizer.think_end)
    tell(stream.flush() + "\n")
    prefix.append_text(tokenizer.encode("\n\n<img>"))
    return prefix.kv, tokenizer.decode(ids)
