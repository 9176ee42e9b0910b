import dataclasses

import pytest

from u1_core.errors import U1Error
from u1_core.train.recipe import Recipe, Runtime, Train, field_docs
from u1_core.train.recipe_file import dump_recipe, parse_recipe


def test_every_field_is_documented_once():
    docs = {doc.key: doc for doc in field_docs()}
    sections = [one.name for one in dataclasses.fields(Recipe) if not one.metadata]
    assert sections == ["data", "style", "lora", "train", "runtime", "validation", "previews"]
    keys = [key for key in yaml_keys(dump_recipe(Recipe())) if key not in sections]
    assert sorted(docs) == sorted(keys)
    assert all(doc.meaning and doc.allowed for doc in docs.values())
    assert (docs["train.lr"].default, docs["train.lr"].allowed) == (5e-5, "a number above 0")
    assert docs["data.cap_max_pixels"].unit == "pixels"


def yaml_keys(text):
    section = ""
    for line in text.splitlines():
        if line.startswith("- "):
            continue
        name = line.split(":")[0]
        if not name.startswith(" "):
            section = f"{name}." if line.endswith(":") and name != "unfreeze" else ""
            yield name
        elif not name.strip().startswith("-"):
            yield section + name.strip()


def test_the_default_is_the_reference_trainers_recommended_recipe():
    recipe = Recipe()
    assert (recipe.lora.preset, recipe.lora.spec, recipe.lora.dropout) == ("attn_mlp_no_head", None, 0.0)
    assert [pattern.split(r"\.")[1] for pattern in recipe.unfreeze] == [
        "timestep_embedder",
        "noise_scale_embedder",
        "vision_model_mot_gen",
        "fm_head",
    ]
    train = recipe.train
    assert (train.loss_type, train.t_dist, train.lr, train.steps, train.seed) == ("x0", "uniform", 5e-5, 6000, 0)
    assert (train.cond_dropout_text, train.cond_dropout_both, train.shuffle, train.grad_accum) == (0.0, 0.0, True, 1)


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(U1Error, match=r"^train\.steps is 0; allowed: a whole number, 1 or more$"):
        Train(steps=0)
    with pytest.raises(U1Error, match=r"^runtime\.device is 'gpu'; allowed: auto, cpu, cuda or cuda:N$"):
        dataclasses.replace(Runtime(), device="gpu")


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", ".hidden", "a:b", "CON", "lpt1", "end.", "tab\t", "\ud800"])
def test_run_names_that_no_folder_can_have(name):
    with pytest.raises(U1Error, match=r"^run_name is .*; allowed: a plain folder name"):
        Recipe(run_name=name)


def test_a_run_name_leaves_room_for_the_endings_of_its_files():
    """A file system's limit is 255 bytes, not letters."""
    longest = "é" * 100
    assert Recipe(run_name=longest).run_name == longest
    with pytest.raises(U1Error, match="allowed: a plain folder name of at most 200 bytes, without"):
        Recipe(run_name=longest + "e")


@pytest.mark.parametrize("name", ["my_run", "été 3", "v1.2", "console"])
def test_run_names_that_will_do(name):
    assert parse_recipe(dump_recipe(Recipe(run_name=name)), "x").run_name == name
