"""ComfyUI as the studio's host: when a run gives way to prompts, and how its memory and ours make room for each other.

Every open session is a model among ComfyUI's own, by a `ModelPatcher` that has no weights itself: when another model
needs memory, or all are to be unloaded, ComfyUI asks that patcher, and the session's weights go to host memory. Before
they are used they are loaded through ComfyUI again, which unloads others for it.

ComfyUI's memory management is for the thread of its prompts. A run's thread uses it only while the queue is empty and
kept so by its mutex.
"""

import logging
import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher
from server import PromptServer

from u1_core.session import Session
from u1_core.workflow.host import Host
from u1_core.workflow.parking import Parking

EVENT = "u1.run"
"""The event that news of a run is sent under."""


class ComfyHost(Host):
    """One for the process. `let_go(session)` is to forget a session, unless a run is using it, and say whether it did;
    `at_work` is to say whether a run is going on and not giving way."""

    def __init__(self) -> None:
        self.let_go: Callable[[Session], bool] = lambda session: False
        self.at_work: Callable[[], bool] = lambda: False
        self._patchers: list[SessionPatcher] = []
        self._prompts_seen = -1

    def busy(self) -> bool:
        return PromptServer.instance.prompt_queue.get_tasks_remaining() > 0

    def give_way(self) -> None:
        memory.soft_empty_cache()

    def tell(self, news: dict[str, Any]) -> None:
        PromptServer.instance.send_sync(EVENT, news)

    def make_room(self, session: Session) -> None:
        self._load(session)

    def take_back(self, session: Session, awaited: bool) -> bool:
        queue = PromptServer.instance.prompt_queue
        patcher = self._patcher(session)
        if queue.task_counter == self._prompts_seen and patcher.is_registered() and not patcher.parking.parked_bytes:
            return True
        with queue.mutex:
            if not awaited and queue.get_tasks_remaining():
                return False
            self._load(session)
            self._prompts_seen = queue.task_counter
        return True

    def unload_others(self) -> None:
        """Have ComfyUI unload every model but ours."""
        device = memory.get_torch_device()
        ours = [loaded for loaded in memory.current_loaded_models if isinstance(loaded.model, SessionPatcher)]
        memory.free_memory(1e30, device, keep_loaded=ours)
        memory.soft_empty_cache()

    def _load(self, session: Session) -> None:
        if "base_generation" not in vars(session):
            self.unload_others()  # how much of it may stay on the card is decided when it is read
        memory.load_models_gpu([self._patcher(session)], memory_required=_working_bytes(session.device))

    def _patcher(self, session: Session) -> "SessionPatcher":
        self._patchers = [patcher for patcher in self._patchers if patcher.session() is not None]
        for patcher in self._patchers:
            if patcher.session() is session:
                return patcher
        self._patchers.append(SessionPatcher(session, self))
        return self._patchers[-1]


class U1Session(torch.nn.Module):
    """What ComfyUI's log names when it loads or unloads a session."""


class SessionPatcher(ModelPatcher):
    """A session as ComfyUI sees a model."""

    def __init__(self, session: Session, host: ComfyHost) -> None:
        super().__init__(U1Session(), session.device, torch.device("cpu"))
        self.session, self.parking, self._host = weakref.ref(session), Parking(session), host

    def is_registered(self) -> bool:
        return any(loaded.model is self for loaded in memory.current_loaded_models)

    def model_size(self) -> int:
        return self.loaded_size() + self.parking.parked_bytes

    def loaded_size(self) -> int:
        return self.parking.device_bytes

    def current_loaded_device(self) -> torch.device:
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        before = self.parking.parked_bytes
        self.parking.bring_back()
        return before

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        return self._park(memory_to_free)

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        """Unload, if `unpatch_all`; else ComfyUI is only about to load it again."""
        session = self.session()
        if not unpatch_all or session is None:
            return self.model
        if self._host.let_go(session):
            self.parking.forget()
        elif self._host.busy() or not self._host.at_work():
            self._park(float("inf"))  # what a run at work needs would come straight back
        return self.model

    def _park(self, n_bytes: float) -> int:
        if self.load_device.type == "cpu":
            return 0  # host memory is where it is already
        freed = self.parking.park(n_bytes)
        memory.soft_empty_cache()
        logging.info("U1: %.2f GB of weights moved to host memory for others", freed / 1e9)
        return freed


def _working_bytes(device: torch.device) -> int:
    """What is needed beside the weights: as much as has been in use at most, over what is in use now."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
