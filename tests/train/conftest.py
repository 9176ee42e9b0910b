"""A few small pictures with captions, and what a run on a tiny model needs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from u1_core.jobs import Job
from u1_core.session import Session
from u1_core.train.loop import train
from u1_core.train.recipe import Data, Previews, Recipe, Runtime, Style, Train, Validation

SIZES = ((64, 64), (96, 64), (64, 96), (120, 60), (70, 64))


def write_pictures(folder: Path) -> Path:
    """Five soft pictures of several shapes, a caption beside each; one caption has a think label."""
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        blocks = Image.fromarray(numbers.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        blocks.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        think = "\n---think---\nfirst the red, then the blue" if index == 1 else ""
        (folder / f"{index}.txt").write_text(f"blocks of colour, number {index}{think}", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Operations on tiny tensors are not worth waking a second thread for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """A short run on the pictures above; its pieces are replaced as a test needs."""
    pictures = write_pictures(tmp_path / "pictures")
    return Recipe(
        run_name="tiny",
        data=Data(data_dir=str(pictures), cap_max_pixels=32 * 32),
        style=Style(trigger="sty"),
        train=Train(steps=6, lr=1e-3),
        runtime=Runtime(out_dir=str(tmp_path / "runs"), device="cpu", gc_skip_last=1),
        validation=Validation(every=0),
        previews=Previews(every=0),
    )


@pytest.fixture
def session(models) -> Session:
    """A session on the tiny U1."""
    return Session.open(models["u1"], "cpu")


@pytest.fixture
def with_train():
    """(recipe, **settings) -> the recipe with those settings of its section `train`."""
    return lambda recipe, **settings: replace(recipe, train=replace(recipe.train, **settings))


@pytest.fixture
def run():
    """(session, recipe) -> the ended job of a whole run."""

    def run_to_the_end(session: Session, recipe: Recipe) -> Job:
        job = Job(lambda job: train(job, session, recipe)).start()
        assert job.wait(120)
        return job

    return run_to_the_end
