"""The model that ships: within its size, opened like any other, and doing what its captions and questions ask."""

import numpy as np
import pytest
from PIL import Image

from tools.nano import evaluate
from u1_core import nano
from u1_core.cli.options import load_adapters
from u1_core.session import Session
from u1_core.weights.download import resolve_model

COUNT = 8


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(resolve_model("nano"), device="cpu")


@pytest.fixture(scope="module")
def pairs():
    return [evaluate.sample_pair(evaluate.HELD_OUT + number) for number in range(COUNT)]


def test_files_are_small_enough_for_the_package():
    files = [*nano.MODEL.iterdir(), nano.EIGHT_STEP]
    weights = [path.stat().st_size for path in nano.MODEL.glob("*.safetensors")]
    assert sum(weights) < 20_000_000
    assert max(path.stat().st_size for path in files) < 16_000_000


def test_eight_steps_draw_what_held_out_captions_name(session, pairs):
    session.use(load_adapters([str(nano.EIGHT_STEP)]))
    try:
        captions = [text for _, text in pairs]
        assert evaluate.adherence(captions, evaluate.draw(session, captions, steps=8, cfg=1.0)) > 0.85
    finally:
        session.use([])


def test_fifty_guided_steps_draw_what_held_out_captions_name(session, pairs):
    captions = [text for _, text in pairs[:2]]
    assert evaluate.adherence(captions, evaluate.draw(session, captions, steps=50, cfg=4.0)) > 0.85


def test_questions_about_held_out_scenes(session, pairs):
    assert evaluate.answers(session, [scene for scene, _ in pairs]) >= 0.8


def test_its_captions_name_what_is_there(session, pairs):
    assert evaluate.described(session, [scene for scene, _ in pairs[:2]]) > 0.85


def test_a_caption_of_another_scene_does_not_fit(pairs):
    """The measure itself: pictures of other scenes do not pass for those that were asked for."""
    captions = [text for _, text in pairs]
    others = [np.asarray(Image.fromarray(evaluate.render(scene, 192))) for scene, _ in pairs[1:] + pairs[:1]]
    assert evaluate.adherence(captions, others) < 0.6
