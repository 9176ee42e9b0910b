"""What ComfyUI's registry is told of the pack, and what it is sent."""

import re
import subprocess
from pathlib import Path

import pytest
import tomllib
from PIL import Image

from tools.comfyui import PACK_FILES, PACK_NAME

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]


def test_the_name_is_one_that_the_registry_takes():
    assert PROJECT["name"] == PACK_NAME
    assert len(PACK_NAME) < 100
    assert "comfyui" not in PACK_NAME
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])
    assert COMFY["PublisherId"]
    assert COMFY["DisplayName"] == "U1 Style Studio"


def test_the_icon_is_a_small_square_in_the_repository():
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    assert COMFY["Icon"].startswith(raw)
    with Image.open(ROOT / COMFY["Icon"].removeprefix(raw)) as icon:
        assert icon.format == "PNG"
        assert icon.width == icon.height <= 400


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: what git tracks is what is published")
def test_what_is_published_is_the_pack_without_its_workshop():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    left_out = tuple((ROOT / ".comfyignore").read_text(encoding="utf-8").split())
    sent = [path for path in tracked.stdout.splitlines() if not path.startswith(left_out)]
    tops = {path.partition("/")[0] for path in sent}
    assert tops == {*PACK_FILES, "requirements.txt", "README.md", "LICENSE", "docs", ".comfyignore"}
    assert sum((ROOT / path).stat().st_size for path in sent) < 60 * 2**20


def test_a_new_version_on_main_is_published():
    workflow = (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8")
    assert "paths: [pyproject.toml]" in workflow
    assert "uses: Comfy-Org/publish-node-action@main" in workflow
    assert "personal_access_token: ${{ secrets.REGISTRY_ACCESS_TOKEN }}" in workflow
