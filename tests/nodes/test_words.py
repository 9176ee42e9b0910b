"""What people read of the nodes: the same inputs in every language as in the code, and a help page with a picture."""

import inspect
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tools.help_pages import pages
from u1_core.workflow.graph import NODES
from u1_core.workflow.run_history import STATES

PACK = Path(__file__).resolve().parents[2]


def words(language: str) -> dict:
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_every_input_has_a_name_and_a_tooltip_in_every_language(language):
    """Nodes that draw take all options of a picture; some of them leave a few out of their schema."""
    found, english = words(language), words("en")
    assert found.keys() == english.keys() == NODES.keys()
    for node, function in NODES.items():
        inputs = found[node]["inputs"]
        assert list(inputs) == list(english[node]["inputs"])
        taken = {name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY}
        assert set(inputs) <= taken, node
        assert taken - set(inputs) <= {"batch", "image_cfg", "norm", "interval_from", "interval_to", "shift"}, node
        assert found[node]["description"]
        assert all(one["name"] and one["tooltip"] for one in inputs.values())


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_the_panel_s_words_are_there_in_every_language_with_what_is_filled_in(language):
    code = "".join(path.read_text(encoding="utf-8") for path in (PACK / "js").glob("*.js"))
    phrases = set(re.findall(r'\bsay\("([^"]+)"', code)) | set(STATES)
    file = PACK / "locales" / language / "main.json"
    translated = json.loads(file.read_text(encoding="utf-8"))["u1Panel"]
    assert translated.keys() == phrases
    for phrase, words in translated.items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", phrase)), phrase


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page_with_its_picture(node):
    page = (PACK / "js" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert f"]({node}.jpg)" in page
    with Image.open(PACK / "js" / "docs" / f"{node}.jpg") as picture:
        assert picture.width >= 400


def test_help_pages_in_other_languages_are_those_that_the_tool_makes():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run tools/help_pages.py"
