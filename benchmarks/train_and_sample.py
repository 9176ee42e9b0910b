"""Training and prompting in one process on a card of a given size: how much memory it takes, and what a picture costs.

A run of the default recipe trains U1-8B in the background while pictures are drawn, through the functions that the
nodes call. The model is written to --model if there is none (35 GB, random weights). A card of --card GiB is played by
a larger one: the allocator may take no more than that card would have free beside CUDA's own and a desktop. Printed,
and with --json FILE written: the most memory in use on the card, the CUDA context included, seconds of a picture with
and without a run, and seconds that the run lost by it: from its last step before to the end of its first one after,
less one step.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from on_disk import have_model, model_options
from PIL import Image
from work import machine, parser

from u1_core.plan.budget import GIB, Budget, desktop_bytes, enforce
from u1_core.session import Session
from u1_core.workflow.dataset import dataset
from u1_core.workflow.drawing import sample
from u1_core.workflow.handles import Model
from u1_core.workflow.host import Host
from u1_core.workflow.picture_options import CUSTOM_SIZE
from u1_core.workflow.studio import Places, Studio, Watch
from u1_core.workflow.training import train_style_lora

PROMPT = "a lighthouse in the rain"
PICTURES_TO_TRAIN_ON = 4
RUN = "evening"
POLL_S = 0.02


class OneModel(Studio):
    """A studio with a single model, which is open."""

    def __init__(self, places: Places, host: Host, session: Session) -> None:
        super().__init__(places, str(session.device), host)
        session.lease.ready = self.runs.device_is_ready
        self._session = session

    def session(self, model: Model) -> Session:
        return self._session


class Prompts(Host):
    """As ComfyUI's queue: a run gives way while a prompt is in hand. Remembers when the run was told of, and how."""

    def __init__(self) -> None:
        self.waiting = False
        self.news: list[tuple[float, dict[str, Any]]] = []

    def busy(self) -> bool:
        return self.waiting

    def give_way(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tell(self, news: dict[str, Any]) -> None:
        self.news.append((time.monotonic(), news["status"]))

    def when(self, wanted: Callable[[dict[str, Any]], bool]) -> float:
        """The time of the first news that is so, once there is one. Raises RuntimeError if the run ends before."""
        while True:
            for told, status in self.news:
                if wanted(status):
                    return told
                if status["state"] in ("finished", "stopped", "failed"):
                    raise RuntimeError(f"the run is {status['state']}: {status['message']}")
            time.sleep(POLL_S)


def main() -> None:
    args = options().parse_args()
    device = torch.device(args.device)
    have_model(args)
    budget = card_budget(args.card, device) if args.budget == "auto" else Budget.parse(args.budget)
    enforce(budget, device)
    with tempfile.TemporaryDirectory() as folder, watching(device) as used:
        found = measure_evening(args, device, budget, Path(folder))
    found["memory"] = memory_taken(args.card, device, used)
    if device.type == "cuda":
        print(f"{machine(device)}, {args.width}x{args.height}, a card of {args.card} GiB, budget {budget}")
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    model_options(made, "auto")
    made.add_argument("--card", type=float, default=16, help="GiB of the card that is played (default 16)")
    made.add_argument("--steps", type=int, default=20, help="of a picture (default 20)")
    made.add_argument("--cfg", type=float, default=4.0)
    made.add_argument("--pictures", type=int, default=2, help="drawn while the run trains (default 2)")
    return made


def card_budget(card_gib: float, device: torch.device) -> Budget:
    """What the budget "auto" finds free on a card of this size: what CUDA itself takes is not, nor a desktop's room."""
    if device.type == "cpu":
        return Budget.parse("auto")
    card_bytes = int(card_gib * GIB)
    free, total = torch.cuda.mem_get_info(device)
    return Budget("", card_bytes - (total - free) - desktop_bytes(card_bytes))


def measure_evening(args: argparse.Namespace, device: torch.device, budget: Budget, folder: Path) -> dict[str, Any]:
    """A picture without a run, a run, pictures beside it; seconds of each and what the run lost."""
    session = Session.open(args.model, args.device, budget=budget)
    places = Places((), (folder / "loras",), folder / "output", folder / "cache", folder / "input")
    host = Prompts()
    studio, model = OneModel(places, host, session), Model("random", str(args.model))

    def picture(seed: int) -> float:
        sides = {"size": CUSTOM_SIZE, "width": args.width, "height": args.height}
        started = time.monotonic()
        host.waiting = True
        sample(studio, Watch(), model=model, prompt=PROMPT, steps=args.steps, cfg=args.cfg, seed=seed, **sides)
        host.waiting = False
        return time.monotonic() - started

    first, alone = picture(0), picture(1)
    write_pictures(folder / "input", args.width, args.height)
    megapixels = args.width * args.height / 2**20
    handle = dataset(studio, Watch(), folder=str(folder / "input"), megapixels=megapixels).values[0]
    quiet = {"steps": 10**6, "checkpoint_every": 0, "validate_every": 0, "preview_every": 0}
    started = time.monotonic()
    train_style_lora(studio, Watch(), model=model, dataset=handle, name=RUN, **quiet)
    begun = host.when(lambda status: status["step"] >= 1) - started
    undisturbed = steps_of(studio, host, args.warmup, args.repeats)
    beside, lost = [], []
    for seed in range(args.pictures):
        beside.append(picture(seed + 2))
        lost.append(lost_by_the_run(host, undisturbed))
        steps_of(studio, host, 0, args.repeats // 2)
    studio.runs.stop_all()
    status = studio.runs.status(RUN)
    return {
        "picture_first_s": first,
        "picture_alone_s": alone,
        "run_first_step_s": begun,
        "step_s": undisturbed,
        "picture_beside_s": beside,
        "run_lost_s": lost,
        "steps": status.step,
        "planned_gib": (status.planned_bytes or 0) / GIB,
        "warning": status.warning,
    }


def write_pictures(folder: Path, width: int, height: int) -> None:
    """Captioned pictures of soft gradients."""
    folder.mkdir(parents=True)
    for number in range(PICTURES_TO_TRAIN_ON):
        ramp = Image.linear_gradient("L").rotate(90 * number).resize((width, height))
        Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ramp)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a hillside in the evening, seen {number} times\n", encoding="utf-8")


def steps_of(studio: Studio, host: Prompts, warmup: int, count: int) -> float:
    """Median seconds of the run's next `count` steps after `warmup`, by its own log."""
    first = studio.runs.status(RUN).step + warmup
    host.when(lambda status: status["step"] >= first + count)
    log = studio.runs.folder(RUN) / "log.jsonl"
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return statistics.median([record["seconds"] for record in records if record.get("step", 0) > first])


def lost_by_the_run(host: Prompts, step_s: float) -> float:
    """Seconds between the run's last step before the last picture and the end of its first one after, less a step."""
    gave_way, held = max((told, status["step"]) for told, status in host.news if status["state"] == "giving way")
    return host.when(lambda status: status["state"] == "running" and status["step"] > held) - gave_way - step_s


@contextmanager
def watching(device: torch.device) -> Iterator[list[int]]:
    """Look at the card's memory all the while; yields a list that holds the most bytes in use by everyone."""
    used, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(POLL_S):
            free, total = torch.cuda.mem_get_info(device)
            used[0] = max(used[0], total - free)

    thread = threading.Thread(target=look)
    if device.type == "cuda":
        thread.start()
    try:
        yield used
    finally:
        done.set()
        if device.type == "cuda":
            thread.join()


def memory_taken(card_gib: float, device: torch.device, used: list[int]) -> dict[str, Any]:
    """GiB: what the allocator held at most, and what was in use on the card; whether that stays inside."""
    if device.type == "cpu":
        return {}
    reserved = torch.cuda.max_memory_reserved(device)
    return {
        "reserved_gib": reserved / GIB,
        "in_use_on_the_card_gib": used[0] / GIB,
        "inside": used[0] <= card_gib * GIB,
    }


if __name__ == "__main__":
    main()
