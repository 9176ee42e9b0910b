"""A real ComfyUI for these tests: $COMFYUI_DIR, else ~/comfy/ComfyUI, else the one whose custom_nodes we lie in.

The tests run it with its own Python, in a base directory of their own that holds nothing but a copy of the pack. Where
there is none, they are skipped, and the last lines of the report say so.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PACK_FILES = ("__init__.py", "pyproject.toml", "nodes", "js", "u1_core", "locales", "workflows")
PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")
START_LIMIT_S = 180


@dataclass(frozen=True)
class ComfyUI:
    """A checkout of ComfyUI and the Python that runs it."""

    folder: Path
    python: Path

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(part) for part in (self.python, *arguments)]


@dataclass(frozen=True)
class Server:
    """A running ComfyUI, and what it has printed until now."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def post(self, path: str, body: dict | None = None, **headers: str) -> tuple[int, dict]:
        """(status, JSON) of a POST; without a body if there is none."""
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read() or b"{}")

    def queue(self, prompt: dict) -> str:
        """Queue a workflow in API form -> its prompt id."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        assert status == 200, answer
        return answer["prompt_id"]

    def run(self, prompt: dict, limit_s: float = 60) -> dict:
        """Queue a workflow in API form and wait for its history entry."""
        return self.wait(self.queue(prompt), limit_s)

    def wait(self, prompt_id: str, limit_s: float = 60) -> dict:
        """A queued workflow's history entry, once it is there."""
        for _ in range(round(limit_s / 0.2)):
            if entry := json.loads(self.get(f"/history/{prompt_id}")):
                return entry[prompt_id]
            time.sleep(0.2)
        raise TimeoutError(f"no result after {limit_s} s; ComfyUI said:\n{self.log}")


def find_comfyui() -> ComfyUI | str:
    """The ComfyUI to test in, or the reason why there is none."""
    given = os.environ.get("COMFYUI_DIR")
    places = [Path(given).expanduser().resolve()] if given else [Path.home() / "comfy" / "ComfyUI", PACK.parent.parent]
    folder = next((place for place in places if (place / "comfy" / "sd.py").is_file()), None)
    if folder is None:
        return f"no ComfyUI in {' or '.join(map(str, places))}; set COMFYUI_DIR to its folder"
    python = next((folder / python for python in PYTHONS if (folder / python).is_file()), None)
    if python is None:
        return f"{folder} has no virtual environment ({' or '.join(PYTHONS[:2])}) with ComfyUI's requirements"
    return ComfyUI(folder, python)


FOUND = find_comfyui()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say plainly whether these tests ran: a skip is easily overlooked."""
    terminalreporter.section("tests inside ComfyUI")
    terminalreporter.line(f"DID NOT RUN: {FOUND}" if isinstance(FOUND, str) else f"ran in {FOUND.folder}")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    if isinstance(FOUND, str):
        pytest.skip(FOUND)
    return FOUND


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI whose custom_nodes holds the pack and nothing else."""
    base = tmp_path_factory.mktemp("comfyui")
    pack = base / "custom_nodes" / "u1-style-studio"
    pack.mkdir(parents=True)
    for name in filter(lambda name: (PACK / name).exists(), PACK_FILES):
        source = PACK / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, pack / name)
    return base


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, base: Path):
    """ComfyUI on the CPU, listening on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = base / "server.log"
    options = ["--cpu", "--base-directory", base, "--port", port, "--disable-api-nodes", "--disable-auto-launch"]
    command = comfyui.command("main.py", *map(str, options), "--database-url", "sqlite:///:memory:")
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=comfyui.folder, stdout=log, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", log_file)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(server: Server, process: subprocess.Popen) -> None:
    for _ in range(START_LIMIT_S * 2):
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                break
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start; it said:\n{server.log}")


@pytest.fixture(scope="session")
def training() -> Callable[[str, int], dict]:
    """(name, steps) -> a workflow that starts such a run on the tiny model and two pictures."""
    return _training


@pytest.fixture(scope="session")
def until() -> Callable:
    """(condition, limit_s=30) -> the condition's value, once it is true."""

    def wait(condition: Callable, limit_s: float = 30):
        for _ in range(round(limit_s / 0.05)):
            if value := condition():
                return value
            time.sleep(0.05)
        raise TimeoutError

    return wait


def _training(name: str, steps: int) -> dict:
    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    model = node("LoadU1Bf16Offload", model="built-in tiny U1", dtype="auto")
    pictures = node("EmptyImage", width=64, height=64, batch_size=2, color=0x336699)
    data = node("U1StyleDataset", images=["2", 0], captions="one blue wall\nanother blue wall", folder="", trigger="")
    data["inputs"] |= {"prompt_template": "official", "megapixels": 0.0, "snap_bucket": True, "use_think_labels": False}
    spec = node("LoRASpec", model="U1-8B", preset="custom", spec="attn=r4", dropout=0.0)
    train = node("TrainStyleLoRA", model=["1", 0], dataset=["3", 0], spec=["4", 0], name=name, steps=steps, lr=1e-3)
    train["inputs"] |= {"loss": "x0", "t_distribution": "uniform", "caption_dropout": 0.0, "optimizer": "adamw"}
    train["inputs"] |= {"grad_accum": 1, "checkpoint_every": 0, "seed": 0, "train_heads": False, "wait": False}
    train["inputs"] |= {"validate_every": 0, "preview_every": 0, "preview_prompts": ""}
    train["inputs"] |= {"preview_steps": 2, "preview_cfg": 1.0}
    return {"1": model, "2": pictures, "3": data, "4": spec, "5": train}
