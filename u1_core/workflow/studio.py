"""The studio: the models that are open, their LoRAs, and the places that files have. One for a process."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from u1_core import nano
from u1_core.errors import U1Error, nearest
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.sample.euler import Step
from u1_core.session import Session
from u1_core.weights.random_model import write_random_snapshot
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config, write_tiny_tokenizer
from u1_core.workflow.handles import LoraUse, Model
from u1_core.workflow.host import Host
from u1_core.workflow.runs import Runs

NANO, NANO_8STEP = "built-in nano", "built-in nano 8-step"
"""The small model that ships with the package, trained from nothing, and its 8-step LoRA."""
BUILT_IN = {"built-in tiny U1": "u1", "built-in tiny U1.5": "u1.5", "built-in tiny A3B": "a3b"}
"""Models with random weights, made on the spot: for trying out the chain on any machine, not for pictures."""
BUILT_IN_TOKENS = 256
"""Tokens of a built-in model's own picture size: 16 x 16."""


@dataclass(frozen=True)
class Places:
    """Where a studio's files are. Folders that are written to are made when they are first needed."""

    models: tuple[Path, ...]
    """Folders that are searched for models."""
    loras: tuple[Path, ...]
    """Folders with LoRA files; what is trained lands in the first, under `u1`."""
    output: Path
    """Runs go below it, under `u1_runs`."""
    cache: Path
    """For what can be made again: built-in models, pictures that came as tensors, prefix K/V."""
    input: Path
    """Relative folders of pictures are looked for here."""


@dataclass(frozen=True)
class Watch:
    """Who watches one node at work. Each call may raise, which ends that node's work and nothing else."""

    on_step: Callable[[Step], None] = field(default=lambda step: None)
    on_text: Callable[[str], None] = field(default=lambda text: None)
    on_progress: Callable[[int, int], None] = field(default=lambda done, total: None)
    check: Callable[[], None] = field(default=lambda: None)
    """Called while waiting: raises if the node is to give up."""
    workflow: Mapping[str, Any] | None = None
    """The workflow in API form that the node is a part of."""
    node: str = ""
    """The node's id in it."""


class Studio:
    """Sessions by model, opened when first used. Opening another lets go of those that no run is using."""

    def __init__(self, places: Places, device: str = "auto", host: Host | None = None) -> None:
        self.places, self.device = places, device
        self.host = host or Host()
        self.runs = Runs(places.output / "u1_runs", self.host)
        self._lock = threading.RLock()
        self._watching = threading.local()
        self._sessions: dict[tuple[str, str, str], Session] = {}
        self._adapters: dict[tuple[str, int], Adapter] = {}

    def model_names(self) -> list[str]:
        """What `find_model` knows by name: models found in the models folders, then the built-in ones."""
        return [*_found(self.places.models), NANO, *BUILT_IN]

    def find_model(self, name: str) -> Path:
        """The folder of a model that `model_names` lists. A built-in one is made now if it is not there yet."""
        if name == NANO:
            return nano.MODEL
        if name in BUILT_IN:
            return self._built_in(BUILT_IN[name])
        found = _found(self.places.models)
        if name not in found:
            folders = ", ".join(map(str, self.places.models))
            raise U1Error(f"there is no model {name!r} in {folders}{nearest(name, [*found, NANO, *BUILT_IN])}")
        return found[name]

    def gguf_names(self) -> list[str]:
        """Every .gguf file in the models folders, of whatever model, by its path there."""
        return sorted(_ggufs(self.places.models))

    def find_gguf(self, name: str) -> Path:
        """A file that `gguf_names` lists. Raises U1Error with the nearest name."""
        found = _ggufs(self.places.models)
        if name not in found:
            folders = ", ".join(map(str, self.places.models))
            raise U1Error(f"there is no file {name!r} in {folders}{nearest(name, found)}")
        return found[name]

    def lora_names(self) -> list[str]:
        """LoRA files by their path in the LoRA folders, with forward slashes; and the one that ships with nano."""
        return [*sorted(_loras(self.places.loras)), NANO_8STEP]

    def find_lora(self, name: str) -> Path:
        """A file that `lora_names` lists. Raises U1Error with the nearest name."""
        if name == NANO_8STEP:
            return nano.EIGHT_STEP
        found = _loras(self.places.loras)
        if name not in found:
            folders = ", ".join(map(str, self.places.loras))
            raise U1Error(f"there is no LoRA {name!r} in {folders}{nearest(name, [*found, NANO_8STEP])}")
        return found[name]

    def find_folder(self, text: str) -> Path:
        """A folder (or file) of pictures: as it is given, or inside the input folder. U1Error if none is given."""
        if not text.strip():
            raise U1Error("folder is empty; give a folder of pictures")
        path = Path(text.strip()).expanduser()
        inside = self.places.input / path
        return path if path.is_absolute() or path.exists() or not inside.exists() else inside

    def session(self, model: Model) -> Session:
        """The open session of a model."""
        key = (model.path, model.dtype, model.budget)
        with self._lock:
            if key not in self._sessions:
                self.release()
                path, budget = Path(model.path), model.budget
                session = Session.open(path, self.device, model.dtype, self._on_progress, budget=budget)
                session.lease.ready = self.runs.device_is_ready
                self._sessions[key] = session
            return self._sessions[key]

    @contextmanager
    def using(self, model: Model, watch: Watch) -> Iterator[Session]:
        """The session with the model's LoRAs in effect, its weights on the device, and its lease held."""
        session = self.session(model)
        self.host.make_room(session)
        with self.watched(watch), session.lease.held(watch.check):
            watch.check()
            folded = [lora for lora in model.loras if lora.folded and session not in self.runs.sessions()]
            session.fold([self.adapter(lora) for lora in folded])
            session.use([self.adapter(lora) for lora in model.loras if lora not in folded])
            try:
                yield session
            finally:
                session.use([])

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Have `watch` told of weights that are read on this thread: they are read by whoever needs them first."""
        self._watching.watch = watch
        try:
            yield
        finally:
            self._watching.watch = Watch()

    def adapter(self, lora: LoraUse) -> Adapter:
        """A LoRA as it is used: at its strength, without what is skipped."""
        if lora.live:
            return replace(self._live(lora.live), strength=lora.strength)
        path = Path(lora.path)
        key = (lora.path, path.stat().st_mtime_ns if path.is_file() else 0)
        if key not in self._adapters:
            self._adapters = dict(list(self._adapters.items())[-7:])
            self._adapters[key] = read_lora(path).adapter
        adapter = self._adapters[key]
        return replace(adapter, strength=lora.strength, modules=_without(adapter, lora.skip))

    def release(self) -> None:
        """Let go of every model that no run is using."""
        with self._lock:
            in_use = self.runs.sessions()
            self._sessions = {key: session for key, session in self._sessions.items() if session in in_use}
            self._adapters = {}

    def let_go(self, session: Session) -> bool:
        """Forget an open model. False if a run is using it."""
        with self._lock:
            if session in self.runs.sessions():
                return False
            self._sessions = {key: kept for key, kept in self._sessions.items() if kept is not session}
            return True

    def _on_progress(self, done: int, total: int) -> None:
        watch = getattr(self._watching, "watch", None)
        if watch:
            watch.on_progress(done, total)

    def _live(self, run_id: str) -> Adapter:
        """A run's weights as they are now, or as it has left them."""
        return self.runs.live_adapter(run_id) or read_lora(self.runs.newest_file(run_id)).adapter

    def _built_in(self, kind: str) -> Path:
        config = tiny_config(kind) | {"max_image_seq_len": BUILT_IN_TOKENS}
        digest = hashlib.blake2b(json.dumps(config).encode(), digest_size=4).hexdigest()
        folder = self.places.cache / "models" / f"tiny-{kind}-{digest}"
        with self._lock:
            if not (folder / "tokenizer_config.json").is_file():
                if not folder.exists():
                    write_random_snapshot(folder, config, head_width=TINY_HEAD_WIDTH)
                write_tiny_tokenizer(folder)
        return folder


def _without(adapter: Adapter, skip: Sequence[str]) -> dict:
    kept = dict(adapter.modules)
    for prefix in skip:
        below = [path for path in kept if path == prefix or path.startswith(f"{prefix}.")]
        if not below:
            known = sorted({part for path in adapter.modules for part in (path, path.rpartition(".")[0])})
            raise U1Error(f"{adapter.name}: nothing to skip at {prefix!r}{nearest(prefix, known)}")
        for path in below:
            del kept[path]
    return kept


def _found(folders: Sequence[Path]) -> dict[str, Path]:
    """U1 models in these folders or one folder further down: name -> folder."""
    found: dict[str, Path] = {}
    for root in folders:
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            try:
                kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
            except (OSError, ValueError, AttributeError):
                continue
            if kind == "neo_chat":
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def _ggufs(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in folders:
        for path in (path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}.gguf")):
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _loras(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in folders:
        for path in _files(root):
            if path.suffix == ".safetensors" and not path.name.endswith(".full.safetensors"):
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below a folder, behind links too; a link back to a folder above is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with suppress(OSError):  # what is not there or not for us to read holds nothing
        for path in folder.iterdir():
            if path.is_dir():
                yield from _files(path, above | {real})
            elif path.is_file():
                yield path
