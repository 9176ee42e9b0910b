"""Run by ComfyUI's own Python, in its folder: what its memory management and the pack's host make of each other.

    python memory_probe.py PACK --cpu

Prints one line of JSON. Host memory stands for a card's.
"""

import importlib
import json
import sys
import threading
import types
from pathlib import Path

PACK = Path(sys.argv.pop(1))
sys.path[:0] = [str(Path.cwd()), str(PACK)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as memory  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402

from u1_core import nano  # noqa: E402
from u1_core.session import Session  # noqa: E402
from u1_core.workflow.parking import tensors_in  # noqa: E402

CPU, SOME_BYTES = torch.device("cpu"), 5_000_000


class Queue:
    """As much of ComfyUI's prompt queue as the host asks for."""

    def __init__(self) -> None:
        self.mutex, self.task_counter, self.waiting = threading.RLock(), 0, 0

    def get_tasks_remaining(self) -> int:
        return self.waiting


def main() -> None:
    queue = Queue()
    server.PromptServer.instance = types.SimpleNamespace(prompt_queue=queue)
    package = types.ModuleType("pack_nodes")
    package.__path__ = [str(PACK / "nodes")]
    sys.modules["pack_nodes"] = package
    module = importlib.import_module("pack_nodes.host")
    module.SessionPatcher._park = lambda self, n_bytes: self.parking.park(n_bytes)
    print(json.dumps(probe(module.ComfyHost(), queue)))


def probe(host, queue: Queue) -> dict:
    session = Session.open(nano.MODEL, "cpu")
    for tower in (session.base_generation, session.understanding):
        assert tower.layers
    before = [tensor.clone() for tensor in tensors_in(session)]
    said, run_uses_it, at_work = {}, [True], [False]
    host.let_go, host.at_work = lambda session: not run_uses_it[0], lambda: at_work[0]
    host.make_room(session)
    patcher = host._patcher(session)
    said["bytes"] = patcher.loaded_size()

    memory.get_free_memory = lambda device=None, torch_free_too=False: (1e9, 0) if torch_free_too else 1e9
    memory.free_memory(1e9 + SOME_BYTES, CPU)
    said["parked_under_pressure"] = patcher.parking.parked_bytes
    queue.waiting = queue.task_counter = 1
    said["taken_back_while_a_prompt_runs"] = host.take_back(session, False)
    said["taken_back_by_a_run_that_is_awaited"] = host.take_back(session, True)
    said["parked_then"] = patcher.parking.parked_bytes

    queue.waiting = 0
    memory.unload_all_models()
    said["parked_by_unload_all"] = patcher.parking.parked_bytes
    host.make_room(session)
    said["same_bits"] = all(now.equal(then) for now, then in zip(tensors_in(session), before, strict=True))

    at_work[0] = True
    memory.unload_all_models()
    said["parked_by_unload_all_while_a_run_is_at_work"] = patcher.parking.parked_bytes
    said["registered_again"] = host.take_back(session, False) and patcher.is_registered()
    host.unload_others()
    said["still_registered_when_others_are_unloaded"] = patcher.is_registered()

    run_uses_it[0] = False
    memory.unload_all_models()
    said["let_go"] = not patcher.is_registered() and not patcher.parking.parked_bytes
    return said


main()
