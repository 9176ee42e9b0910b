"""A run from a recipe to its files: check everything, prepare, step, save. It is the work of a `Job`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from u1_core.data.check import Rules, check_dataset, problems_of
from u1_core.data.dataset import Dataset, open_dataset
from u1_core.data.folder import refuse_problems
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import PictureCache, training_pictures
from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.lora.full import with_full_tensors
from u1_core.lora.plan import FINAL_NORM, plan_lora, select_unfrozen
from u1_core.model.views import Generation
from u1_core.session import Session
from u1_core.train.hooks import standard_hooks
from u1_core.train.optimizers import make_optimizer
from u1_core.train.prefixes import CaptionSequences, build_caption_prefixes
from u1_core.train.previews import preview_settings
from u1_core.train.recipe import Recipe
from u1_core.train.report import write_report
from u1_core.train.run_folder import RunFolder, Saved, free_run_path
from u1_core.train.step import Trainer, TrainingSet
from u1_core.train.validation import held_out
from u1_core.weights.gguf_file import refuse_training_on_quantised


@dataclass(frozen=True)
class Outcome:
    """Where a run came to: its folder, the steps done, and the files of the last state saved."""

    folder: Path
    steps: int
    saved: Saved


def train(job: Job, session: Session, recipe: Recipe) -> Outcome | None:
    """Train as `recipe` says, as the work of `job`. Raises U1Error; before anything is written, if it can be foreseen.

    Events: "checking" (done, total pictures), "prepared" (what will be trained on what), "step" (a record, with means
    where it took several pictures), "checkpoint" and "results" (the file saved). The session's lease is held while the
    model is at work, and free between steps. Asked to stop, the run saves a checkpoint and ends; asked before its first
    step, it leaves nothing and returns None. What hooks find is told under their names: "validation", "preview".
    """
    free_run_path(recipe)
    # The thread may be anyone's: training needs gradients whatever it has been used for.
    with torch.inference_mode(False), torch.enable_grad():
        trainer = prepare(job, session, recipe)
        return _run(job, session, trainer, RunFolder.create(recipe)) if job.go_on() else None


def _run(job: Job, session: Session, trainer: Trainer, folder: RunFolder) -> Outcome:
    settings = trainer.recipe.train
    step, saved_at, saved = 0, 0, Saved(None, None)

    hooks = standard_hooks(session, trainer.recipe, trainer, folder.previews)

    def save_checkpoint() -> Saved:
        saved = folder.save_checkpoint(trainer.adapter, step)
        job.emit("checkpoint", step=step, file=str(saved.loadable))
        _report(job, folder)
        return saved

    def look() -> None:
        for hook in hooks:
            if hook.due(step):
                with session.lease:
                    found = hook.run(trainer, step)
                folder.log([{"event": hook.name, "step": step, **found}])
                job.emit(hook.name, step=step, **found)

    look()
    while step < settings.steps and job.go_on():
        step += 1
        with session.lease:
            records = trainer.step(step)
        folder.log(records)
        means = {key: sum(record[key] for record in records) / len(records) for key in ("loss", "x0_mse", "v_mse")}
        job.emit("step", steps=settings.steps, **{**records[-1], **means})
        if settings.checkpoint_every and step % settings.checkpoint_every == 0 and step < settings.steps:
            saved, saved_at = save_checkpoint(), step
        look()
    if step == settings.steps:
        saved = folder.save_results(trainer.adapter, step, len(set(trainer.data.samples.turns)))
        job.emit("results", step=step, file=str(saved.loadable))
        _report(job, folder)
    elif saved_at < step:
        saved = save_checkpoint()
    return Outcome(folder.path, step, saved)


def _report(job: Job, folder: RunFolder) -> None:
    """Build report.html anew. If that fails, it is told and the run goes on."""
    try:
        write_report(folder.path)
    except Exception as problem:  # a page about the run is not worth the run
        job.emit("warning", message=f"the report could not be written: {problem}")


def prepare(job: Job, session: Session, recipe: Recipe) -> Trainer:
    """Everything that comes before the first step. Writes nothing. What is quick to check is checked first."""
    refuse_training_on_quantised(session.snapshot)
    config, device = session.config, session.device
    upstream = _upstream(session, recipe)
    adapter = new_adapter(session, recipe)
    preview_settings(config, recipe)
    samples, pictures, sequences = _checked_data(job, session, recipe)
    with session.lease:
        prefixes = build_caption_prefixes(session, recipe, sequences, upstream)
        base = with_full_tensors(session.base_generation, upstream)
        adapter.full = _unfrozen(base, select_unfrozen(config, recipe.unfreeze))
        parameters = [*adapter.parameters(), *adapter.full.values()]
        optimizer, optimizer_words = make_optimizer(recipe.train.optimizer, parameters, recipe.train.lr, device)
    job.emit(
        "prepared",
        samples=len(samples),
        modules=len(adapter.modules),
        lora_parameters=sum(tensor.numel() for tensor in adapter.parameters()),
        trainable_parameters=sum(tensor.numel() for tensor in parameters),
        prefix_bytes=prefixes.n_bytes,
        optimizer=optimizer_words,
        device=str(device),
    )
    return Trainer(config, base, adapter, optimizer, recipe, TrainingSet(samples, pictures, prefixes), upstream)


def new_adapter(session: Session, recipe: Recipe) -> Adapter:
    """The LoRA to be trained, as it starts. Raises U1Error for a spec or pattern that this model has nothing for."""
    config, lora = session.config, recipe.lora
    select_unfrozen(config, recipe.unfreeze)
    if not (lora.spec or lora.preset):
        return Adapter({}, kinds=frozenset({config.kind}))
    plan = plan_lora(config, lora.spec or lora.preset, lora.dropout)
    return Adapter.create(plan, recipe.train.seed, session.device)


def _unfrozen(base: Generation, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """fp32 copies of these tensors, to be trained."""
    originals = {**base.modules, FINAL_NORM: base.norm}
    return {name: originals[name].to(torch.float32, copy=True).requires_grad_() for name in names}


def _upstream(session: Session, recipe: Recipe) -> list[Adapter]:
    """The LoRA that stays in effect under the new one, without the modules to be skipped."""
    path, skip = recipe.runtime.upstream_lora_path, recipe.runtime.upstream_lora_skip
    if not path:
        return []
    adapter = read_lora(Path(path)).adapter
    adapter.check(session.config)
    for prefix in skip:
        below = [name for name in adapter.modules if name == prefix or name.startswith(f"{prefix}.")]
        if not below:
            raise U1Error(f"runtime.upstream_lora_skip has {prefix!r}, but {path} has no module of that name or below")
        for name in below:
            del adapter.modules[name]
    return [adapter.to(session.device, session.dtype)]


def _checked_data(job: Job, session: Session, recipe: Recipe) -> tuple[Dataset, PictureCache, CaptionSequences]:
    """The samples, their pictures and their prompts, checked. Raises one U1Error for all that cannot be trained on.

    Emits "checking" (done, total pictures) and "checked" (findings: what else there is to know of the set).
    """
    data, style = recipe.data, recipe.style
    dataset = open_dataset(Path(data.data_dir).expanduser(), data.n_samples)
    framing = Framing(data.cap_max_pixels, session.config.token_pixels, data.snap_bucket, data.fit, data.upscale)
    pictures = training_pictures(dataset, framing, data.masks, data.cache_mb * 10**6, data.workers)
    rules = Rules(framing, style.trigger, data.masks, data.use_think_labels, session.tokenizer.encode)
    findings = check_dataset(
        dataset, pictures, rules, on_progress=lambda *n: job.emit("checking", done=n[0], total=n[1])
    )
    refuse_problems(dataset.source, problems_of(findings))
    job.emit("checked", findings=[asdict(finding) for finding in findings])
    if data.upscale == "skip":
        dataset.leave_out_small(framing)
    if kept_back := held_out(len(dataset), recipe.validation, recipe.train.seed):
        dataset.leave_out(set(kept_back))
    return dataset, pictures, CaptionSequences(session.tokenizer, recipe, dataset)
