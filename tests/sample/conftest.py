"""Models that say what a test wants."""

from collections.abc import Callable

import pytest
import torch

from u1_core.prefix.decode import GrowingPrefix
from u1_core.session import Session
from u1_core.understand import decode


class Heard(GrowingPrefix):
    """Remembers what is appended: token ids, and the grid of a picture before its end. Its last hidden state is only
    the number of texts' tokens so far, by which a script knows what to say next."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.heard: list = []
        self.last_hidden = torch.tensor(0)

    def append_text(self, ids):
        super().append_text(ids)
        return self._hear(list(ids))

    def append_picture(self, tokens, grid, end_id):
        super().append_picture(tokens, grid, end_id)
        return self._hear([grid])

    def _hear(self, what: list):
        self.heard += what
        self.last_hidden = torch.tensor(sum(isinstance(token, int) for token in self.heard))
        return self.last_hidden


@pytest.fixture
def scripted(monkeypatch) -> Callable[[Session, list[int]], list[Heard]]:
    """(session, script): every prefix of the session says these tokens, then ends its turn, whatever the weights.

    Returns the session's growing prefixes, as they come.
    """

    def speak(session: Session, script: list[int]) -> list[Heard]:
        grown: list[Heard] = []

        def grow(built) -> Heard:
            grown.append(Heard(session.config, session.understanding, built))
            return grown[-1]

        def logits(weights, said) -> torch.Tensor:
            token = script[int(said)] if said < len(script) else session.tokenizer.im_end
            return torch.nn.functional.one_hot(torch.tensor(token), session.config.vocab_size).float()

        monkeypatch.setattr(session, "grow", grow)
        monkeypatch.setattr(decode, "logits", logits)
        return grown

    return speak
