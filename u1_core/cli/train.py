"""`u1 train RECIPE.yaml`: one run, with its progress; Ctrl-C stops and saves."""

import argparse
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from u1_core.cli.detach import detach
from u1_core.cli.options import MODEL_HELP
from u1_core.cli.progress import ProgressLine
from u1_core.data.check import Finding
from u1_core.errors import U1Error
from u1_core.jobs import Event, Job
from u1_core.plan.budget import Budget, enforce
from u1_core.session import Session
from u1_core.train.control import STATUS
from u1_core.train.loop import Outcome, train
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.train.run_folder import Saved
from u1_core.weights.download import resolve_model

STOPPED = 130
PLAIN_LINES = 20
"""Progress lines of a run where there is no terminal to rewrite one on."""
RECENT = 50
"""Steps that the shown loss and pace are means over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="the run's recipe, a YAML file")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--name", help="in place of the recipe's run_name")
    parser.add_argument("--steps", type=int, help="in place of the recipe's train.steps")
    parser.add_argument("--out", help="in place of the recipe's runtime.out_dir")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, in place of the recipe's runtime.device")
    parser.add_argument(
        "--budget", help="memory of the card that may be taken, in place of the recipe's runtime.budget"
    )
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument("--resume", action="store_true", help="go on with the run of this name where it was saved last")
    resume.add_argument(
        "--resume-anyway", action="store_true", help="the same, though recipe, pictures or model have changed"
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave it running when the terminal is gone; see `u1 runs`"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when the run is done, 130 when it was stopped. Raises U1Error."""
    recipe = _with_options(_where_it_lies(load_recipe(args.recipe), args), args)
    if not recipe.model:
        raise U1Error(f"{args.recipe}: names no model; add a line `model: FOLDER` or give --model")
    if args.detach:
        return detach(recipe, args)
    if recipe.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before CUDA begins
    resume = "anyway" if args.resume_anyway else "checked" if args.resume else ""
    reading = ProgressLine("reading weights")
    budget = Budget.parse(recipe.runtime.budget)
    session = Session.open(resolve_model(recipe.model), recipe.runtime.device, on_progress=reading.bytes, budget=budget)
    enforce(budget, session.device)
    job = Job(lambda job: train(job, session, recipe, resume, alone=True)).start()
    with _ends_as_ctrl_c():
        _watch(job, recipe)
    if isinstance(job.error, U1Error):
        raise job.error
    if job.error:
        print(job.traceback, file=sys.stderr)
        return 1
    _report(recipe, job.state, job.result, args.json)
    return STOPPED if job.state == "stopped" else 0


@contextmanager
def _ends_as_ctrl_c() -> Iterator[None]:
    """Have a request to end, or a terminal that goes away, stop the run and save it as Ctrl-C does.

    What the process was started to ignore (nohup) stays ignored. Such requests come in twos and threes, when a terminal
    is closed say: those after the first are not taken for the second Ctrl-C, which leaves at once.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]

    def interrupt(*_: object) -> None:
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _where_it_lies(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """A run that goes on by the recipe in its own folder is the one in that folder, wherever the command is given."""
    folder = args.recipe.resolve().parent
    if (args.resume or args.resume_anyway) and folder.name == recipe.run_name and (folder / STATUS).is_file():
        return replace(recipe, runtime=replace(recipe.runtime, out_dir=str(folder.parent)))
    return recipe


def _with_options(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with what the command line says in place of its own."""
    asked = {"out_dir": args.out, "device": args.device, "budget": args.budget}
    runtime = replace(recipe.runtime, **{key: value for key, value in asked.items() if value})
    steps = recipe.train.steps if args.steps is None else args.steps
    return replace(
        recipe,
        run_name=args.name or recipe.run_name,
        model=args.model or recipe.model,
        train=replace(recipe.train, steps=steps),
        runtime=runtime,
    )


def _watch(job: Job, recipe: Recipe) -> None:
    """Show the job's events to its end. The first Ctrl-C asks it to stop, the second leaves it."""
    show, seen, interrupted = _Progress(recipe), 0, False
    while not job.ended:
        try:
            for event in job.follow(after=seen):
                seen = event.number
                show(event)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            show.line("stopping after this step; the weights are saved (Ctrl-C again: leave at once, without them)")
            job.stop()


class _Progress:
    """Tells on standard error how far a run is: a line rewritten on a terminal, a few lines elsewhere."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._terminal = sys.stderr.isatty()
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def __call__(self, event: Event) -> None:
        data = event.data
        if event.kind == "checking" and self._terminal:
            self._rewrite(f"looking at pictures {data['done']}/{data['total']}")
        elif event.kind == "checked":
            for finding in data["findings"]:
                self.line(str(Finding(**finding)))
        elif event.kind == "prepared":
            self.line(
                f"{self._recipe.run_name}: {data['samples']} pictures, {data['trainable_parameters']:,} trainable "
                f"parameters ({data['modules']} LoRA modules), prefix K/V {data['prefix_bytes'] / 1e6:.0f} MB, "
                f"{data['device']}, {data['optimizer']}"
            )
        elif event.kind == "step":
            self._step(data["step"], data["steps"], data["loss"], data["seconds"])
        elif event.kind == "resumed_from":
            self.line(f"going on after step {data['step']}")
        elif event.kind == "rollback":
            self.line(
                f"step {data['from_step']}: {data['reason']}: back to step {data['step']}, learning rate times "
                f"{data['lr_scale']:g}"
            )
        elif event.kind in ("warning", "out_of_memory"):
            self.line(f"warning: {data['message']}")
        elif event.kind == "checkpoint":
            self.line(f"saved {data['file']}")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._print(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")

    def _step(self, step: int, steps: int, loss: float, seconds: float) -> None:
        self._recent.append((loss, seconds))
        loss, pace = (sum(values) / len(self._recent) for values in zip(*self._recent, strict=True))
        text = f"step {step}/{steps}  loss {loss:.4f}  {pace:.2f} s a step  {_duration((steps - step) * pace)} left"
        if self._terminal:
            filled = 24 * step // steps
            self._rewrite(f"[{'#' * filled}{'.' * (24 - filled)}] {text}")
            if step == steps:
                self.line(text)
        elif step == steps or step % max(1, steps // PLAIN_LINES) == 0:
            self.line(text)

    def _rewrite(self, text: str) -> None:
        self._print(f"\r{text}\x1b[K")

    def _print(self, text: str) -> None:
        """A terminal that is gone, or a pipe that nobody reads, is no reason to end a run."""
        with suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _report(recipe: Recipe, state: str, outcome: Outcome | None, as_json: bool) -> None:
    saved = outcome.saved if outcome else Saved(None, None)
    if as_json:
        facts = {
            "state": state,
            "run": str(outcome.folder) if outcome else None,
            "steps": outcome.steps if outcome else 0,
            "lora": str(saved.lora) if saved.lora else None,
            "full": str(saved.full) if saved.full else None,
        }
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif not outcome:
        print("stopped before the first step; nothing was written")
    else:
        print(f"{state} after {outcome.steps} of {recipe.train.steps} steps: {outcome.folder}")
        for what, path in (("LoRA", saved.lora), ("tensors trained whole", saved.full)):
            if path:
                print(f"  {what}: {path}")
        if saved.loadable:
            trigger = f"{recipe.style.trigger}, …" if recipe.style.trigger else "…"
            print(f'  use it: u1 sample "{trigger}" --model "{recipe.model}" --lora "{saved.loadable}"')
