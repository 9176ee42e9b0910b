"""A few small pictures with captions, and what a run on a tiny model needs."""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

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


class Refusing:
    """A file on a disk that takes only so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Refusing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        taken = self._file.write(data[: self._room])
        self._room -= taken
        if taken < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken


@pytest.fixture
def full_disk(monkeypatch) -> Callable[..., ExitStack]:
    """(beginning of a file's name, room=0): from now on there is room for no more bytes of it than that.

    As `with full_disk(…):` only inside the block.
    """
    rooms: dict[str, int] = {}
    plain = Path.open

    def open_there(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = plain(path, mode, *more, **named)
        room = next((room for name, room in rooms.items() if path.name.startswith(name)), None)
        return file if room is None or mode.startswith("r") else Refusing(file, room)

    def fill(name: str, room: int = 0) -> ExitStack:
        rooms[name] = room
        block = ExitStack()
        block.callback(rooms.pop, name)
        return block

    monkeypatch.setattr(Path, "open", open_there)
    return fill


@pytest.fixture
def run():
    """(session, recipe) -> the ended job of a whole run."""

    def run_to_the_end(session: Session, recipe: Recipe) -> Job:
        job = Job(lambda job: train(job, session, recipe)).start()
        assert job.wait(120)
        return job

    return run_to_the_end
