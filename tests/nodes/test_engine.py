"""Where the nodes find the engine: beside them, without touching sys.path or ComfyUI's own `nodes`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("engine", {str(PACK / "nodes" / "engine.py")!r})
engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(engine)
"""


def _fresh_interpreter(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run `code` in `folder` without installed packages."""
    return subprocess.run([sys.executable, "-S", "-c", LOAD + code], cwd=folder, capture_output=True, text=True)


def test_engine_is_the_one_beside_the_nodes(tmp_path):
    code = "before = list(sys.path); engine.provide_engine(); import u1_core.errors; "
    code += "print(u1_core.__file__); print(sys.path == before, 'nodes' in sys.modules)"
    result = _fresh_interpreter(code, tmp_path)
    assert result.stdout.splitlines() == [str(PACK / "u1_core" / "__init__.py"), "True False"], result.stderr


def test_providing_the_same_engine_twice_keeps_it(tmp_path):
    code = "engine.provide_engine(); first = sys.modules['u1_core']; engine.provide_engine(); "
    result = _fresh_interpreter(code + "print(sys.modules['u1_core'] is first)", tmp_path)
    assert result.stdout.strip() == "True", result.stderr


def test_a_second_copy_of_the_pack_is_refused(tmp_path):
    other = tmp_path / "u1_core"
    other.mkdir()
    (other / "__init__.py").write_text("", encoding="utf-8")
    result = _fresh_interpreter("import u1_core; engine.provide_engine()", tmp_path)
    assert f"RuntimeError: u1_core is already loaded from {other}, so the nodes in {PACK} would run" in result.stderr


def test_the_entry_has_what_comfyui_looks_for_and_nothing_else():
    spec = importlib.util.spec_from_file_location("pack_entry", PACK / "__init__.py")
    entry = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry)
    assert {name for name in vars(entry) if not name.startswith("__")} == {"WEB_DIRECTORY", "comfy_entrypoint"}
    assert (PACK / entry.WEB_DIRECTORY).is_dir()
