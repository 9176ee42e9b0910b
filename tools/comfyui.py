"""A real ComfyUI with this pack in it, for the tests and for making pictures of it.

The ComfyUI is $COMFYUI_DIR, else ~/comfy/ComfyUI, else the one whose custom_nodes this checkout lies in. It runs on the
CPU with its own Python, in a base directory apart that holds nothing but a copy of the pack, so that it stays as it is.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
PACK_FILES = ("__init__.py", "pyproject.toml", "nodes", "js", "u1_core", "locales", "workflows")
PACK_NAME = "u1-style-studio"
PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")
START_LIMIT_S = 180


@dataclass(frozen=True)
class ComfyUI:
    """A checkout of ComfyUI and the Python that runs it."""

    folder: Path
    python: Path

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(part) for part in (self.python, *arguments)]


def find_comfyui() -> ComfyUI | str:
    """The ComfyUI to work with, or the reason why there is none."""
    given = os.environ.get("COMFYUI_DIR")
    places = [Path(given).expanduser().resolve()] if given else [Path.home() / "comfy" / "ComfyUI", PACK.parent.parent]
    folder = next((place for place in places if (place / "comfy" / "sd.py").is_file()), None)
    if folder is None:
        return f"no ComfyUI in {' or '.join(map(str, places))}; set COMFYUI_DIR to its folder"
    python = next((folder / python for python in PYTHONS if (folder / python).is_file()), None)
    if python is None:
        return f"{folder} has no virtual environment ({' or '.join(PYTHONS[:2])}) with ComfyUI's requirements"
    return ComfyUI(folder, python)


def furnish(base: Path) -> Path:
    """Make a base directory with a copy of the pack, as far as it is published; -> the pack's folder there.

    The settings are those of someone who has been here before: no tour of ComfyUI opens by itself.
    """
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")
    pack = base / "custom_nodes" / PACK_NAME
    pack.mkdir(parents=True)
    for name in PACK_FILES:
        source = PACK / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, pack / name)
    return pack


class Server:
    """ComfyUI in a base directory, on a loopback port that it keeps over restarts."""

    def __init__(self, comfyui: ComfyUI, base: Path, threads: int | None = None) -> None:
        """`threads` is how many the arithmetic takes; None leaves it to torch."""
        self.base = base
        self.environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = ["--cpu", "--base-directory", base, "--port", port, "--disable-api-nodes", "--disable-auto-launch"]
        self._command = comfyui.command("main.py", *map(str, options), "--database-url", "sqlite:///:memory:")
        self._folder = comfyui.folder
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with what it has printed if it does not."""
        with (self.base / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        for _ in range(START_LIMIT_S * 4):
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None:
                    break
                time.sleep(0.25)
        raise RuntimeError(f"ComfyUI did not start; it said:\n{self.log}")

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        self._process.wait(30)

    def interrupt(self, limit_s: float = 60) -> None:
        """End it as Ctrl-C does, and wait until it has ended."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(limit_s)

    @property
    def log(self) -> str:
        """What it has printed since it was first started."""
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

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
        if status != 200:
            raise RuntimeError(f"ComfyUI refuses the workflow: {answer}")
        return answer["prompt_id"]

    def run(self, prompt: dict, limit_s: float = 60) -> dict:
        """Queue a workflow in API form and wait for its history entry."""
        return self.wait(self.queue(prompt), limit_s)

    def wait(self, prompt_id: str, limit_s: float = 60) -> dict:
        """A queued workflow's history entry, once it is there."""
        for _ in range(round(limit_s / 0.05)):
            if entry := json.loads(self.get(f"/history/{prompt_id}")):
                return entry[prompt_id]
            time.sleep(0.05)
        raise TimeoutError(f"no result after {limit_s} s; ComfyUI said:\n{self.log}")


@contextmanager
def serving(comfyui: ComfyUI, base: Path, threads: int | None = None) -> Iterator[Server]:
    """A started server, ended on the way out."""
    server = Server(comfyui, base, threads)
    server.start()
    try:
        yield server
    finally:
        server.kill()
