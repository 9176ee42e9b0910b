"""A style LoRA's set and recipe; a run of two steps."""

import numpy as np
import pytest
from PIL import Image

from tools.nano import style_run
from tools.nano.style_run import PICTURES, set_pairs, train_style, write_set
from u1_core.lora.files import read_lora
from u1_core.train.run_log import read_run


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    """A set of four pictures of each kind, the plain ones not drawn but grey."""

    class Session:
        def use(self, adapters):
            used.append(len(adapters))

    used = []
    grey = np.full((192, 192, 3), 128, np.uint8)
    monkeypatch.setattr(style_run, "draw", lambda session, captions, steps, cfg: [grey] * len(captions))
    styled = write_set(tmp_path / "pictures", Session(), "ink", set_pairs(seed=0, count=4))
    assert used == [1, 0]
    assert (np.asarray(Image.open(tmp_path / "pictures" / "ink" / "03.png")) == styled[3]).all()
    return tmp_path / "pictures"


def test_sets_of_different_seeds_have_no_scene_in_common():
    sets = [{scene for scene, _ in set_pairs(seed)} for seed in range(3)]
    assert len(set.union(*sets)) == 3 * PICTURES == 72


def test_both_kinds_of_pictures_have_the_same_captions(pictures):
    ink, plain = ([path.read_text(encoding="utf-8") for path in sorted((pictures / name).glob("*.txt"))] for name in
                  ("ink", "plain"))  # fmt: skip
    assert ink == plain == [caption + "\n" for _, caption in set_pairs(seed=0, count=4)]


def test_a_run_is_made_by_the_recipe(pictures, tmp_path):
    folder = train_style(tmp_path, "ink", pictures, "ink on paper", seed=3, steps=2)
    run = read_run(folder)
    assert (len(run.steps), len(run.validations)) == (2, 3)
    assert (run.recipe.train.seed, run.recipe.style.untriggered) == (3, ("plain/*",))
    assert run.validations[0]["held_out"]["pictures"] == 1
    assert len(read_lora(folder / "ink.safetensors").adapter.modules) == 44
