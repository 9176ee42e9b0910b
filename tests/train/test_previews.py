import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from u1_core.data.pictures import to_images
from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.lora.files import FULL_FILE, read_lora, write_full, write_lora
from u1_core.sample.branches import draw
from u1_core.sample.text_to_image import text_to_image
from u1_core.train import previews
from u1_core.train.prepare import prepare
from u1_core.train.previews import Previewer, preview_prompts, preview_settings


@pytest.fixture
def recipe(recipe):
    return replace(recipe, previews=replace(recipe.previews, every=2, steps=2, cfg=2.0, seed=7))


@pytest.fixture
def trainer(session, recipe):
    return prepare(Job(print), session, recipe)


@pytest.fixture
def previewer(session, recipe, tmp_path):
    return Previewer(session, recipe, ("a red house", "a blue one"), tmp_path / "previews")


def pixels(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_they_are_what_u1_sample_draws_with_the_saved_lora(session, recipe, trainer, previewer, tmp_path):
    for step in (1, 2):
        trainer.step(step)
    found = previewer.run(trainer, 2)
    assert found["files"] == ["step_000002_1.png", "step_000002_2.png"]
    assert found["base_files"] == ["base_1.png", "base_2.png"]
    write_full(tmp_path / "x.full.safetensors", trainer.adapter.full, "u1")
    write_lora(tmp_path / "x.safetensors", trainer.adapter, {FULL_FILE: "x.full.safetensors"})
    settings = preview_settings(session.config, recipe)
    for adapters, names in (
        ([], found["base_files"]),
        ([read_lora(tmp_path / "x.safetensors").adapter], found["files"]),
    ):
        session.use(adapters)
        for prompt, name in zip(("a red house", "a blue one"), names, strict=True):
            (image,) = to_images(text_to_image(session, prompt, settings).pictures)
            assert pixels(tmp_path / "previews" / name) == image.tobytes()
    assert pixels(tmp_path / "previews" / "base_1.png") != pixels(tmp_path / "previews" / "step_000002_1.png")


def test_the_session_and_the_training_are_left_as_they_were(session, recipe, trainer, previewer):
    other = prepare(Job(print), session, recipe)
    before = list(session.adapters)
    previewer.run(trainer, 0)
    assert session.adapters == before
    assert trainer.step(1)[0]["loss"] == other.step(1)[0]["loss"]


def test_pictures_carry_their_settings_and_the_base_is_drawn_once(trainer, previewer, tmp_path, monkeypatch):
    previewer.run(trainer, 2)
    with Image.open(tmp_path / "previews" / "step_000002_2.png") as image:
        facts = json.loads(image.info["u1"])
    assert (facts["prompt"], facts["settings"]["seed"], facts["settings"]["steps"]) == ("a blue one", 7, 2)
    drawn = []
    monkeypatch.setattr(previews, "draw", lambda *args: drawn.append(args[0].adapters) or draw(*args))
    previewer.run(trainer, 2)
    assert drawn == [[trainer.adapter]] * 2
    assert len(list((tmp_path / "previews").iterdir())) == 4
    (tmp_path / "previews" / "base_1.png").write_bytes(b"half a pict")
    previewer.run(trainer, 4)
    assert drawn[2:] == [[], [trainer.adapter], [trainer.adapter]]


def test_a_preview_that_fails_is_told_of_and_no_more(trainer, previewer, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("no\nroom")

    monkeypatch.setattr(previews, "draw", fail)
    assert previewer.run(trainer, 2) == {"failed": "OutOfMemoryError: no room"}


def test_begun_it_needs_the_understanding_tower_no_more(session, recipe, trainer, previewer, tmp_path):
    previewer.run(trainer, 2)
    again = Previewer(session, recipe, ("a red house", "a blue one"), tmp_path / "again")
    again.begin(trainer)
    session.release_understanding()
    again.run(trainer, 2)
    assert "understanding" not in vars(session)
    for name in ("base_1.png", "step_000002_1.png", "step_000002_2.png"):
        assert pixels(tmp_path / "again" / name) == pixels(tmp_path / "previews" / name)


def test_a_prompt_that_cannot_be_built_is_told_of_when_it_is_drawn(session, recipe, trainer, tmp_path):
    previewer = Previewer(session, recipe, ("see <image>",), tmp_path / "previews")
    previewer.begin(trainer)
    assert "<image>" in previewer.run(trainer, 2)["failed"]


def test_prompts_sizes_and_steps_come_from_the_recipe(session, recipe, previewer):
    assert preview_prompts(recipe, ["one", "two"]) == ("sty, one", "sty, two")
    asked = replace(recipe, previews=replace(recipe.previews, prompts=("just this",), size="48x32"))
    assert preview_prompts(asked, ["one"]) == ("just this",)
    settings = preview_settings(session.config, asked)
    assert (settings.width, settings.height, settings.guidance.cfg_scale) == (48, 32, 2.0)
    settings = preview_settings(session.config, recipe)
    assert settings.width == settings.height == 32
    assert [step for step in range(6) if previewer.due(step)] == [2, 4]
    with pytest.raises(U1Error, match="size '7:5' is neither"):
        preview_settings(session.config, replace(recipe, previews=replace(recipe.previews, size="7:5")))
