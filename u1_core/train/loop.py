"""A run from a recipe to its files: check everything, prepare, step, save. It is the work of a `Job`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from u1_core.errors import U1Error
from u1_core.jobs import Job, StopAsked
from u1_core.session import Session
from u1_core.train.board import Board
from u1_core.train.checkpoint import State, discard, newest_state, prune, write_state
from u1_core.train.control import Control, refuse_going
from u1_core.train.file_hashes import HASHES, FileHashes
from u1_core.train.hooks import standard_hooks
from u1_core.train.journal import Journal
from u1_core.train.manifest import Manifest, data_hashes, fingerprint
from u1_core.train.optimizers import resolve_optimizer
from u1_core.train.pace import Pace
from u1_core.train.prepare import prepared, state_at_start
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import dump_recipe
from u1_core.train.report import write_report
from u1_core.train.resume import About, check_space, refuse_changes, refuse_shorter
from u1_core.train.room import make_room
from u1_core.train.run_folder import RunFolder, Saved, free_run_path, run_path, without_paths
from u1_core.train.step import Record, Trainer
from u1_core.weights.write import NoRoomError

ROOM_POLL_S = 5.0
"""How long a run that is done waits between two attempts to write its results on a full disk."""


@dataclass(frozen=True)
class Outcome:
    """Where a run came to: its folder, the steps done, and the files of the last state saved."""

    folder: Path
    steps: int
    saved: Saved


class DivergedError(U1Error):
    """The loss is beyond what skipping steps and going back can mend."""


def train(
    job: Job,
    session: Session,
    recipe: Recipe,
    resume: str = "",
    begun: Callable[[Trainer, Path], None] = lambda trainer, folder: None,
    alone: bool = False,
) -> Outcome | None:
    """Train as `recipe` says, as the work of `job`. Raises U1Error; before anything is written, if it can be foreseen.

    `resume` goes on with the run of that name from its newest whole checkpoint: "checked" only if recipe, data and
    model are what they were, "anyway" whatever they are. The result is, to the bit, that of a run never cut off.
    `begun` is handed the trainer and the run's folder before the first step; who holds the session's lease may read the
    trainer's weights. `alone` says that nobody else uses the session: what the run needs no more is let go.

    Events: "checking" (done, total pictures), "prepared" (what will be trained on what), "step" (a record, with means
    where it took several pictures), "checkpoint" and "results" (the file saved), "plan" (what it predicts),
    "rollback", "warning" and "out_of_memory" (a message).
    The session's lease is held while the model is at work, and free between steps. Asked to stop, or at an error, the
    run saves a checkpoint and ends; asked before it has a folder, it leaves nothing and returns None. What hooks find
    is told under their names: "validation", "preview".
    """
    # First of all: if the optimizer cannot be had, that is known before a model is read, and its package, which takes
    # seconds to import, comes while the disk is at work on the model.
    optimizer = resolve_optimizer(recipe.train.optimizer, session.device)
    recipe = replace(recipe, train=replace(recipe.train, optimizer=optimizer))
    folder = RunFolder.reopen(recipe) if resume else None
    if folder:
        refuse_going(folder.path)
    else:
        free_run_path(recipe)
    # The thread may be anyone's: training needs gradients whatever it has been used for.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _deterministic(recipe.runtime.deterministic),
        prepared(job, session, recipe) as trainer,
    ):
        if not job.go_on():
            return None
        files = FileHashes(run_path(recipe).with_name(HASHES))
        hashes = data_hashes(trainer.data.samples, files)
        about = About(dump_recipe(without_paths(recipe)), fingerprint(hashes), session.snapshot.fingerprint())
        state = newest_state(folder.checkpoints) if folder else None
        if state:
            refuse_shorter(folder.path, state, recipe)
            if resume != "anyway":
                refuse_changes(folder.path, state, about)
        tight = check_space(recipe, trainer)
        folder = folder or RunFolder.create(recipe)
        with Control(folder.path, job) as control:
            folder.keep_recipe()
            manifest = Manifest(folder.path / "manifest.json", session, files, hashes, recipe.train.optimizer)
            begun(trainer, folder.path)
            run = _Run(job, session, trainer, folder, about, control, manifest)
            if alone:
                run.release_understanding()
            run.begin(state, tight)
            del state  # gigabytes, which the trainer has copied
            return run.go()


class _Run:
    """The steps of a run, and its saving."""

    def __init__(
        self,
        job: Job,
        session: Session,
        trainer: Trainer,
        folder: RunFolder,
        about: About,
        control: Control,
        manifest: Manifest,
    ) -> None:
        self._job, self._session, self._trainer, self._folder = job, session, trainer, folder
        self._about, self._control, self._manifest = about, control, manifest
        self._settings = trainer.recipe.train
        self._journal = Journal(folder.log_path, self._warn)
        self._board = Board(folder.board if trainer.recipe.runtime.tensorboard else None, self._warn)
        self._hooks = standard_hooks(session, trainer.recipe, trainer, folder.previews)
        self._pace = Pace(trainer.plan)
        self._step, self._looked = 0, False
        self._saved_at, self._saved, self._saved_time = 0, Saved(None, None), time.monotonic()

    def release_understanding(self) -> None:
        """Let the understanding tower go: captions' prefixes are built, and those of previews are built now."""
        with self._session.lease:
            for hook in self._hooks:
                hook.begin(self._trainer)
            self._session.release_understanding()

    def begin(self, state: State | None, warning: str = "") -> None:
        """At `state`, or at the start. `warning` is told first."""
        self._journal.cut(state.log_bytes if state else 0)
        if warning:
            self._warn(warning)
        if state:
            self._return_to(state)
            self._job.emit("resumed_from", step=self._step, steps=self._settings.steps)
        self._board.begin(self._step)
        self._tell_plan()

    def go(self) -> Outcome:
        """To the end, or until told to stop."""
        try:
            with suppress(StopAsked):  # while it waited for the device
                self._steps()
        except DivergedError:
            raise
        except BaseException:
            if self._saved_at < self._step and not self._trainer.updating:
                self._save()
            raise
        finally:
            self._tell_measured()
            self._board.close()
        if self._step == self._settings.steps:
            self._when_there_is_room(self._finish)
        elif self._saved_at < self._step:
            self._save()
        return Outcome(self._folder.path, self._step, self._saved)

    def _steps(self) -> None:
        while True:
            if not self._looked:
                self._look()
            # Half an update is undone before all else, so that what is saved at the end is whole.
            if self._step == self._settings.steps or not (self._trainer.updating or self._job.go_on()):
                return
            records = self._take_step()
            if not records:
                continue
            self._step, self._looked = self._step + 1, False
            self._log(records)
            self._pace.add(records)
            means = {key: sum(record[key] for record in records) / len(records) for key in ("loss", "x0_mse", "v_mse")}
            self._job.emit("step", steps=self._settings.steps, **{**records[-1], **means})
            if self._trainer.guard.exhausted:
                self._roll_back(records[0]["skipped"])
            if self._save_is_due():
                self._save()

    def _take_step(self) -> list[Record]:
        """The next step's records; none where there is something else to do before it."""
        try:
            with self._session.lease.held(self._check_stop):
                if self._trainer.updating:
                    return self._undo_update()
                return self._trainer.step(self._step + 1)
        except torch.OutOfMemoryError as problem:
            reason = str(problem).partition("\n")[0]
        # Out here nothing holds on any more to what the step had allocated.
        self._tell_measured()
        with self._session.lease:
            given_up = make_room(self._session, self._trainer)
        message = f"memory ran out in step {self._step + 1}; it is taken again with {given_up}"
        told = {"step": self._step, "given_up": given_up, "reason": reason, "message": message}
        self._log([{"event": "out_of_memory", **told}])
        self._job.emit("out_of_memory", **told)
        self._pace = Pace(self._trainer.plan)
        self._tell_plan()
        return []

    def _check_stop(self) -> None:
        """While it waits for the device: raises StopAsked where the run may end as it is."""
        if not self._trainer.updating and self._step < self._settings.steps:
            self._job.check_stop()

    def _undo_update(self) -> list[Record]:
        """Leave half an update behind: go back to the newest checkpoint, or to the start. Returns no records."""
        gone = self._step + 1
        self._go_back()
        reason = "memory ran out in the middle of an update"
        told = {"step": self._step, "from_step": gone, "reason": reason, "lr_scale": self._trainer.guard.lr_scale}
        self._log([{"event": "rollback", **told}])
        self._job.emit("rollback", **told)
        return []

    def _tell_plan(self) -> None:
        """Log what the plan predicts, if it predicts anything, and put it into the manifest."""
        if self._trainer.plan.seconds:
            self._log([{"event": "plan", "step": self._step, **self._pace.predicted()}])
            self._job.emit("plan", **self._pace.predicted())
            self._manifest.tell_plan(self._pace.predicted())

    def _tell_measured(self) -> None:
        """The same with what was measured under that plan, if any step was."""
        if measured := self._trainer.plan.seconds and self._pace.measured():
            self._log([{"event": "measured", "step": self._step, **measured}])
            self._manifest.tell_plan(measured)

    def _save_is_due(self) -> bool:
        every, minutes = self._settings.checkpoint_every, self._settings.checkpoint_minutes
        if self._step in (self._settings.steps, self._saved_at) or self._trainer.guard.skipped:
            return False  # where steps are being skipped, the state before them is the one to go back to
        late = minutes and time.monotonic() - self._saved_time > 60 * minutes
        return bool(self._control.save_asked.is_set() or late or (every and self._step % every == 0))

    def _look(self) -> None:
        """Run the hooks that are due. One that fails is logged so, and the run goes on."""
        for hook in self._hooks:
            asked = hook.name == "preview" and self._control.preview_asked.is_set()
            if not (asked or hook.due(self._step)):
                continue
            if hook.name == "preview" and self._saved_at < self._step:
                self._save()
            try:
                with self._session.lease.held(self._check_stop):
                    found = hook.run(self._trainer, self._step)
            except StopAsked:
                raise
            except Exception as problem:  # looking at a run is not worth the run
                found = {"failed": f"{problem}" if isinstance(problem, U1Error) else repr(problem)}
            if hook.name == "preview":
                self._control.preview_asked.clear()
            self._log([{"event": hook.name, "step": self._step, **found}])
            self._job.emit(hook.name, step=self._step, **found)
        self._looked = True

    def _roll_back(self, reason: str) -> None:
        """Go back with half the learning rate. Raises DivergedError where that is over."""
        guard = self._trainer.guard
        if guard.rollbacks >= self._settings.max_rollbacks:
            raise DivergedError(
                f"step {self._step}: {reason}: the run has diverged after {guard.rollbacks} attempts to go back and "
                "was stopped; its last checkpoint, if it has any, is sound. Lower train.lr"
            )
        gone, rollbacks = self._step, guard.rollbacks + 1
        self._go_back()
        guard.rollbacks, guard.skipped = rollbacks, 0
        told = {"step": self._step, "from_step": gone, "reason": reason, "lr_scale": guard.lr_scale}
        self._board.begin(self._step)
        self._log([{"event": "rollback", **told}])
        self._job.emit("rollback", **told)
        try:
            self._write_state()
        except U1Error as problem:
            self._warn(f"not saved that the run went back: {problem}")

    def _go_back(self) -> None:
        """To the newest checkpoint, or to the start, the log with it."""
        if state := newest_state(self._folder.checkpoints):
            self._return_to(state)
        else:
            self._trainer.restore(**state_at_start(self._session, self._trainer))
            self._step, self._saved_at, self._looked = 0, 0, False
        self._journal.cut(state.log_bytes if state else 0)

    def _return_to(self, state: State) -> None:
        self._trainer.restore(state.weights, state.ema, state.optimizer, state.guard)
        self._step = self._saved_at = state.step
        self._looked = state.looked

    def _save(self) -> None:
        """Save a checkpoint. A disk that does not take it is told, and the run goes on with the one before."""
        self._control.save_asked.clear()
        try:
            self._saved = self._folder.save_checkpoint(self._trainer.weights_to_use(), self._step)
            self._write_state()
        except U1Error as problem:
            discard(self._folder.checkpoints, self._step)
            self._saved_time = time.monotonic()  # checkpoint_minutes from now, not at every step
            self._warn(f"no checkpoint at step {self._step}: {problem}")
            return
        prune(self._folder.checkpoints, self._settings.keep_last, self._settings.keep_every)
        self._job.emit("checkpoint", step=self._step, file=str(self._saved.loadable))
        _report(self._job, self._folder)

    def _write_state(self) -> None:
        trainer = self._trainer
        state = State(
            step=self._step,
            looked=self._looked,
            log_bytes=self._journal.n_bytes(),
            guard=trainer.guard.state(),
            weights=trainer.parameters,
            ema=trainer.ema,
            optimizer=trainer.optimizer.state_dict(),
            **vars(self._about),
        )
        write_state(self._folder.checkpoints / f"state_{self._step:06}.safetensors", state)
        self._saved_at, self._saved_time = self._step, time.monotonic()

    def _log(self, records: Sequence[Record]) -> None:
        self._journal.append(records)
        self._board.add(records)

    def _warn(self, message: str) -> None:
        """Tell of what does not end the run: those who watch it, and its log."""
        self._job.emit("warning", message=message)
        self._log([{"event": "warning", "step": self._step, "message": message}])

    def _when_there_is_room(self, write: Callable[[], None]) -> None:
        """`write`; on a full disk again and again until it has been done. Raises NoRoomError if told to stop."""
        told = False
        while True:
            try:
                return write()
            except NoRoomError as problem:
                if not self._job.go_on():
                    raise
                if not told:
                    self._warn(f"{problem}; make room: the results wait in memory until there is")
                told = True
            time.sleep(ROOM_POLL_S)

    def _finish(self) -> None:
        """Write the results, and a state from which more steps can be trained."""
        pictures = len(set(self._trainer.data.samples.turns))
        self._manifest.finish()
        self._saved = self._folder.save_results(self._trainer.weights_to_use(), self._step, pictures)
        self._write_state()
        prune(self._folder.checkpoints, self._settings.keep_last, self._settings.keep_every)
        self._job.emit("results", step=self._step, file=str(self._saved.loadable))
        _report(self._job, self._folder)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """The same bits each time on a card, if wanted. CUBLAS_WORKSPACE_CONFIG must have been set before CUDA began."""
    if not wanted or torch.are_deterministic_algorithms_enabled():
        yield  # setting it, even to what it is, has PyTorch import its compiler, which takes seconds
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _report(job: Job, folder: RunFolder) -> None:
    """Build report.html anew. If that fails, it is told and the run goes on."""
    try:
        write_report(folder.path)
    except Exception as problem:  # a page about the run is not worth the run
        job.emit("warning", message=f"the report could not be written: {problem}")
