import json

import pytest
import yaml

from u1_core.cli.main import main
from u1_core.train.recipe import Recipe, field_docs
from u1_core.train.recipe_file import load_recipe
from u1_core.train.shipped import SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_new_recipe_is_the_shipped_one_with_every_field_and_its_meaning(name, tmp_path, capsys):
    out = tmp_path / "new.yaml"
    assert main(["recipe", "new", "--from", name, str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert load_recipe(out) == SHIPPED[name].recipe
    text = out.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: ")
    assert max(map(len, text.splitlines())) <= 200
    values = yaml.safe_load(text)
    for doc in field_docs():
        section, _, field = doc.key.rpartition(".")
        assert field in (values[section] if section else values)
        assert doc.meaning.split()[0] in text


def test_the_default_is_the_reference_recipe_and_nothing_is_overwritten(tmp_path, capsys):
    out = tmp_path / "new.yaml"
    assert main(["recipe", "new", str(out)]) == 0
    assert load_recipe(out).train == Recipe().train
    assert main(["recipe", "new", str(out)]) == 2
    assert "new.yaml" in capsys.readouterr().err
    assert main(["recipe", "new", "--from", "style_defalt", str(tmp_path / "b.yaml")]) == 2
    assert "did you mean 'style_default'?" in capsys.readouterr().err
    assert not (tmp_path / "b.yaml").exists()


def test_show_tells_a_field_a_section_or_all(capsys):
    assert main(["recipe", "show", "train.huber_delta"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train.huber_delta = 1.0",
        "    error at which a Huber loss turns from squared to linear",
        "    allowed: a number above 0",
    ]
    assert main(["recipe", "show", "huber_delta", "--json"]) == 0
    (doc,) = json.loads(capsys.readouterr().out)
    assert (doc["key"], doc["default"]) == ("train.huber_delta", 1.0)
    main(["recipe", "show", "style", "--json"])
    keys = [doc["key"] for doc in json.loads(capsys.readouterr().out)]
    assert keys == ["style.trigger", "style.untriggered", "style.prompt_template"]
    main(["recipe", "show", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == len(list(field_docs()))
    assert main(["recipe", "show", "leraning_rate"]) == 2
    assert main(["recipe", "show", "train.step"]) == 2
    assert "did you mean 'train.steps'?" in capsys.readouterr().err


def test_check_says_what_differs_or_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("run_name: abc\ntrain:\n  lr: 2e-5\n  steps: 6000\n", encoding="utf-8")
    assert main(["recipe", "check", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: a recipe that can be used",
        "  run_name: abc (default my_run)",
        "  train.lr: 2e-05 (default 5e-05)",
    ]
    assert main(["recipe", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["lr"] == 2e-5
    path.write_text("train:\n  lr: fast\n", encoding="utf-8")
    assert main(["recipe", "check", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path} line 2: train.lr is 'fast'; allowed: a number above 0\n"
