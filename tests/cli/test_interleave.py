import json
from pathlib import Path

import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.session import Session

FAST = ("--steps", "1", "--device", "cpu")


@pytest.fixture
def tell(models, session, scripted, monkeypatch):
    """(said, *options) runs `u1 interleave` on a tiny U1 that says that."""

    def run(said: str, *options: str | Path) -> None:
        model = session()
        scripted(model, model.tokenizer.encode(said))
        with monkeypatch.context() as patch:
            patch.setattr(Session, "open", lambda *arguments, **budget: model)
            assert main(["interleave", "two foxes", *map(str, options), "--model", str(models["u1"]), *FAST]) == 0

    return run


def test_text_and_files_in_between(tell, tmp_path, capsys):
    out = tmp_path / "fox.png"
    tell("one<img>two<img>", "--size", "48x32", "--out", out)
    lines = capsys.readouterr().out.splitlines()
    second = tmp_path / "fox-1.png"
    assert lines == ["one", f"[{out}]", "two", f"[{second}]", "", str(out), str(second)]
    assert Image.open(out).size == Image.open(second).size == (48, 32)
    assert json.loads(Image.open(second).text["u1"])["prompt"] == "two foxes"


def test_json(tell, tmp_path, capsys):
    out = tmp_path / "fox.png"
    tell("one<img>two", "--size", "48x32", "--json", "--out", out, "--max-tokens", "5")
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == f"one\n[{out}]\ntw"
    assert told["files"] == [str(out)]
    assert told["command"] == "interleave"


def test_sizes(tell, tmp_path, picture):
    """Without one: 9/16 of the model's 64 tokens; with an input picture, its own size."""
    tell("<img>", "--out", tmp_path / "a.png", "--cfg", "1")
    assert Image.open(tmp_path / "a.png").size == (48, 48)
    tell("<img>", picture, "--out", tmp_path / "b.png", "--cfg", "1")
    assert Image.open(tmp_path / "b.png").size == (32, 16)


def test_refused(refused, models, picture):
    model = ("--model", models["u1"], *FAST)
    assert refused("interleave", "x", *model, "--size", "33x32").startswith("size 33x32: both sides must be multiples")
    assert refused("interleave", "x", *model, "--norm", "cfg_zero_star").startswith("guidance norm 'cfg_zero_star' is")
    assert refused("interleave", "<image>", *model) == "the prompt marks 1 pictures with <image>, but 0 are given"
    assert refused("interleave", "x", *model, "--max-tokens", "0") == "max_tokens 0 must be at least 1"
