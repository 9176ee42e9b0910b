"""The house's own rules: what may import what, what is never done, and how quickly the engine is there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from u1_core import __version__

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "u1_core"
MODULES = sorted(ENGINE.rglob("*.py"))
OURS = [*MODULES, *sorted(ROOT.glob("nodes/*.py")), ROOT / "__init__.py"]

STOREYS = (
    ("errors", "lease", "kernels"),
    ("model", "text", "jobs"),
    ("weights", "data", "released"),
    ("lora", "prefix", "plan"),
    ("session",),
    ("sample", "understand"),
    ("train",),
    ("parity", "workflow"),
    ("cli",),
)
"""The rooms of u1_core from the ground up: a room knows those on its own storey and below (docs/architecture.md)."""

COMFYUI = {"comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
NEVER_IMPORTED = {"pickle", "dill", "marshal", "shelve", "torchvision", "torchaudio", *COMFYUI}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def room_of(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0].removesuffix(".py")


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_and_its_command_line_are_there_within_3_seconds():
    code = "import time; start = time.perf_counter(); import u1_core, u1_core.cli.main; "
    assert float(fresh_interpreter(code + "print(time.perf_counter() - start)")) < 3.0


def test_no_module_pulls_in_transformers_or_comfyui_when_imported():
    imported_when_used = {path for path in ENGINE.glob("kernels/*.py") if "triton" in imported(path)}
    paths = [path for path in MODULES if path not in imported_when_used]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in fresh_interpreter(code).split()}
    assert "u1_core" in loaded
    assert not loaded & {"transformers", "matplotlib", "pyarrow", "skimage", "gguf", "triton", *COMFYUI}


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_arrows_point_down(path):
    height = {room: number for number, storey in enumerate(STOREYS) for room in storey}
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("u1_core.")}
    if room_of(path) != "__init__":
        assert [room for room in sorted(rooms) if height[room] > height[room_of(path)]] == []
    assert not {name.partition(".")[0] for name in imported(path)} & NEVER_IMPORTED


def test_the_model_is_functions_that_know_only_errors_and_kernels():
    rooms = {name.split(".")[1] for path in ENGINE.glob("model/*.py") for name in imported(path) if "u1_core." in name}
    assert rooms == {"model", "errors", "kernels"}


@pytest.mark.parametrize("path", OURS, ids=by_name)
def test_module_opens_with_its_purpose_and_runs_nothing_from_outside(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert not tree.body or ast.get_docstring(tree), "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "os.system", "torch.load"), f"line {node.lineno}"
    assert "trust_remote_code=True" not in source


def test_the_version_is_the_same_for_comfyui_as_for_python():
    (version,) = re.findall(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version == __version__
