import subprocess
import sys

import pytest

from u1_core.cli import ahead
from u1_core.cli.main import main
from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.weights import read_ahead


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """Names of the folders that were begun to be read."""
    names = []
    monkeypatch.setattr(read_ahead, "begin", lambda path, towers: names.append(path.name))
    return names


@pytest.fixture
def recipe(tmp_path) -> str:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    path = tmp_path / "run.yaml"
    path.write_text(f"run_name: a\nmodel: {tmp_path / 'ours'}\n", encoding="utf-8")
    return str(path)


def test_the_model_that_the_arguments_name(begun, recipe, tmp_path):
    theirs = str(tmp_path / "theirs")
    ahead.begin("train", [recipe, "--steps", "3"])
    ahead.begin("train", [recipe, "--model", theirs])
    ahead.begin("sample", ["a house", f"--model={theirs}"])
    ahead.begin("sample", ["a house", "--model", "nano"])
    assert begun == ["ours", "theirs", "theirs", "model"]


def test_questions_need_one_tower(monkeypatch, tmp_path):
    towers = []
    monkeypatch.setattr(read_ahead, "begin", lambda path, wanted: towers.append(wanted))
    for command in ("ask", "edit"):
        ahead.begin(command, ["what is it?", "--model", str(tmp_path)])
    assert towers == [(UNDERSTANDING,), (UNDERSTANDING, GENERATION)]


def test_nothing_is_read_where_it_would_be_for_nothing(begun, recipe, tmp_path):
    (tmp_path / "broken.yaml").write_text("model: [", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- model", encoding="utf-8")
    (tmp_path / "number.yaml").write_text("model: 7", encoding="utf-8")
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 5000, encoding="utf-8")
    ahead.begin("lora", ["merge", "--model", str(tmp_path / "ours")])
    ahead.begin("train", [recipe, "--detach"])
    ahead.begin("train", [recipe, "--help"])
    for name in ("broken", "list", "number", "deep", "missing"):
        ahead.begin("train", [str(tmp_path / f"{name}.yaml")])
    ahead.begin("sample", ["a house", "--model", str(tmp_path / "missing")])
    ahead.begin("sample", ["a house", "--model"])
    assert begun == []


def test_reading_begins_before_the_command_is_imported(tmp_path, monkeypatch):
    order = []
    monkeypatch.delitem(sys.modules, "u1_core.cli.sample", raising=False)
    monkeypatch.setattr(
        read_ahead, "begin", lambda path, towers: order.append((path.name, "u1_core.cli.sample" in sys.modules))
    )
    assert main(["sample", "a house", "--model", str(tmp_path)]) == 2
    assert order == [(tmp_path.name, False)]


def test_finding_a_model_imports_no_pytorch(recipe):
    code = (
        "import sys; from u1_core.cli import ahead; from u1_core.weights import read_ahead; "
        "read_ahead.begin = lambda path, towers: print(path.name, 'torch' in sys.modules); "
        f"ahead.begin('train', [{recipe!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ours False\n", done.stderr
