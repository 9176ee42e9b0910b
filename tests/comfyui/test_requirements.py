"""Installing the pack leaves ComfyUI's own packages alone."""

import json
import subprocess
from pathlib import Path

from packaging.requirements import Requirement

FILE = Path(__file__).resolve().parents[2] / "requirements.txt"
LINES = FILE.read_text(encoding="utf-8").splitlines()
REQUIREMENTS = [Requirement(line) for line in LINES if line and not line.startswith("#")]
VERSIONS = """
import importlib.metadata, json
print(json.dumps({found.name.lower().replace("-", "_"): found.version for found in importlib.metadata.distributions()}))
"""


def test_comfyui_meets_every_requirement_but_bitsandbytes(comfyui):
    found = subprocess.run(comfyui.command("-c", VERSIONS), capture_output=True, text=True, check=True)
    versions = json.loads(found.stdout)
    unmet = {each.name for each in REQUIREMENTS if not each.specifier.contains(versions.get(each.name, "0"))}
    assert unmet <= {"bitsandbytes"}


def test_torch_is_left_to_comfyui():
    assert not {each.name for each in REQUIREMENTS} & {"torch", "torchvision", "torchaudio"}


def test_requirements_are_lower_bounds():
    assert {clause.operator for each in REQUIREMENTS for clause in each.specifier} == {">="}
