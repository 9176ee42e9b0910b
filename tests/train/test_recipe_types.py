"""Every field of a recipe given what it cannot be: one line each, with the place."""

import pytest

from u1_core.errors import U1Error
from u1_core.train.recipe import Recipe, field_docs
from u1_core.train.recipe_file import parse_recipe

KEYS = [doc.key for doc in field_docs()]
LISTS = ("unfreeze", "runtime.upstream_lora_skip", "previews.prompts")


def written(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section}:\n  {name}: {value}\n" if section else f"\n{name}: {value}\n"


@pytest.mark.parametrize("value", ["{a: 1}", "[[1]]"])
@pytest.mark.parametrize("key", KEYS)
def test_tables_and_nested_lists_are_no_settings(key, value):
    with pytest.raises(U1Error) as caught:
        parse_recipe(written(key, value), "r.yaml")
    message = str(caught.value)
    shown = f"{key}[0]" if key in LISTS and value == "[[1]]" else key
    assert message.startswith(f"r.yaml line 2: {shown} is a {'table' if '{' in value else 'list'}; allowed: ")
    assert "\n" not in message


@pytest.mark.parametrize("key", [doc.key for doc in field_docs() if isinstance(doc.default, (int, float))])
def test_words_are_neither_numbers_nor_switches(key):
    with pytest.raises(U1Error, match=rf"^r\.yaml line 2: {key} is 'many'; allowed: "):
        parse_recipe(written(key, "many"), "r.yaml")


def test_prodigy_and_schedule_free_ask_for_what_they_need():
    for settings, words in (
        ("optimizer: prodigy", "train.lr is 5e-05, but prodigy finds its own"),
        ("{optimizer: prodigy, lr: 1, lora_plus: 16}", "train.lora_plus cannot be with prodigy"),
        ("{optimizer: schedule_free, lr_schedule: cosine}", "train.lr_schedule is cosine, but schedule_free takes"),
    ):
        with pytest.raises(U1Error, match=words):
            parse_recipe(f"train:\n  {settings}" if settings[0] != "{" else f"train: {settings}", "r.yaml")
    assert Recipe().train.optimizer == "auto"
