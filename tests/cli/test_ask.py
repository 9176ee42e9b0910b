import json
from pathlib import Path

import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.session import Session
from u1_core.understand.ask import ask
from u1_core.understand.decode import TextSettings


@pytest.fixture
def answer(models, capsys):
    """(*arguments) -> what `u1 ask` prints."""

    def run(*arguments: str | Path) -> str:
        assert main(["ask", *map(str, arguments), "--model", str(models["u1"]), "--device", "cpu"]) == 0
        return capsys.readouterr().out

    return run


def told(models, question: str, pictures=(), **settings) -> str:
    """The answer by the library."""
    session = Session.open(models["u1"], device="cpu")
    return "".join(ask(session, question, pictures, settings=TextSettings(max_tokens=8, **settings)))


def test_plain_chat(answer, models):
    assert answer("Who are you?", "--max-tokens", "8") == told(models, "Who are you?") + "\n"


def test_about_pictures(answer, models, picture):
    ours = answer("What is it?", picture, picture, "--max-tokens", "8")
    assert ours == told(models, "What is it?", [Image.open(picture)] * 2) + "\n"
    assert ours != answer("What is it?", "--max-tokens", "8")


def test_drawn_answers(answer, models):
    options = ("--temperature", "0.9", "--top-p", "0.8", "--top-k", "20", "--repetition-penalty", "1.2", "--seed", "5")
    expected = told(models, "Why?", temperature=0.9, top_p=0.8, top_k=20, repetition_penalty=1.2, seed=5)
    assert answer("Why?", "--max-tokens", "8", *options) == expected + "\n"
    assert answer("Why?", "--max-tokens", "8", *options[:-1], "6") != expected + "\n"


def test_json(answer, models, picture):
    facts = json.loads(answer("What is it?", picture, "--max-tokens", "8", "--json"))
    assert facts["answer"] == told(models, "What is it?", [Image.open(picture)]).strip()
    assert (facts["question"], facts["pictures"]) == ("What is it?", [str(picture)])
    assert facts["command"] == "ask"


def test_a_lora_on_the_generation_tower_leaves_answers_alone(answer, lora):
    assert answer("Why?", "--max-tokens", "8", "--lora", lora(1)) == answer("Why?", "--max-tokens", "8")


def test_refused(refused, models, tmp_path, picture):
    model = ("--model", models["u1"], "--device", "cpu")
    missing = tmp_path / "missing.jpg"
    assert refused("ask", "What?", missing, *model) == f"{missing}: there is no such file"
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    assert "is no picture in a format that can be read" in refused("ask", "What?", tmp_path / "notes.txt", *model)
    assert refused("ask", "What?", *model, "--top-p", "2").startswith("temperature 0.0 must be at least 0, top_p 2.0")
    assert refused("ask", "What?", *model, "--max-tokens", "0") == "max_tokens 0 must be at least 1"
    assert refused("ask", "<image> <image>", picture, *model).startswith("the prompt marks 2 pictures")
