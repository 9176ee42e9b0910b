import sys
from dataclasses import replace
from types import ModuleType
from typing import ClassVar

import pytest

from u1_core.train.board import Board
from u1_core.train.recipe import Validation

BOTH = [{"step": 3, "loss": 1.0, "t": 0.5, "sample": "a"}, {"step": 3, "loss": 3.0, "t": 0.25, "sample": "b"}]


class Writer:
    """Stands for torch.utils.tensorboard.SummaryWriter, which needs a package that nothing here depends on."""

    made: ClassVar[list["Writer"]] = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, {}, False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_a_step_is_the_mean_of_its_pictures_and_an_event_its_numbers(tmp_path, writers):
    told = []
    board = Board(tmp_path, told.append)
    board.begin(0)
    board.add(BOTH)
    board.add([{"event": "validation", "step": 4, "held_out": {"x0": {"percent": 91.0}}, "files": ["a.png"]}])
    board.close()
    (writer,) = writers
    assert writer.scalars == {
        ("train/loss", 3): 2.0,
        ("train/t", 3): 0.375,
        ("validation/held_out/x0/percent", 4): 91.0,
    }
    assert (writer.folder, writer.purge_step, writer.closed, told) == (str(tmp_path), 1, True, [])


def test_without_a_folder_nothing_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = Board(None, lambda words: pytest.fail(words))
    board.begin(0)
    board.add(BOTH)
    board.close()


def test_without_the_package_there_is_one_line_and_the_run_goes_on(session, recipe, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    job = run(session, replace(recipe, runtime=replace(recipe.runtime, tensorboard=True)))
    assert job.state == "finished"
    told = [event.data["message"] for event in job.events() if event.kind == "warning"]
    assert told == [
        "runtime.tensorboard: the package tensorboard is not installed; pip install tensorboard; the run goes on "
        "without it"
    ]


def test_a_run_shows_what_it_logs(session, recipe, run, writers):
    recipe = replace(
        recipe,
        runtime=replace(recipe.runtime, tensorboard=True),
        validation=Validation(every=3, pictures=1, timesteps=2),
    )
    job = run(session, recipe)
    (writer,) = writers
    assert {step for name, step in writer.scalars if name == "train/loss"} == set(range(1, 7))
    assert writer.scalars["validation/training/x0/percent", 0] == 100.0
    assert writer.folder == str(job.result.folder / "tensorboard")
    assert writer.closed


def test_a_writer_that_fails_is_told_of_once(tmp_path, writers, monkeypatch):
    told = []
    board = Board(tmp_path, told.append)
    board.begin(7)
    monkeypatch.setattr(Writer, "add_scalar", lambda *_: 1 / 0)
    for _ in range(3):
        board.add(BOTH)
    assert told == ["runtime.tensorboard: division by zero; the run goes on without it"]
