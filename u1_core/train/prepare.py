"""Everything that comes before a run's first step: the data checked, prefixes built, weights and optimizer made."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

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
from u1_core.train.guard import Guard
from u1_core.train.optimizers import make_optimizer, parameter_groups
from u1_core.train.order import Order
from u1_core.train.prefixes import CaptionSequences, build_caption_prefixes
from u1_core.train.previews import preview_settings
from u1_core.train.recipe import Recipe, Style
from u1_core.train.room import Sizes, first_plan
from u1_core.train.step import Trainer, named_weights
from u1_core.train.turn import TrainingSet
from u1_core.train.validation import held_out, triggered
from u1_core.weights.gguf_file import refuse_training_on_quantised


@contextmanager
def prepared(job: Job, session: Session, recipe: Recipe) -> Iterator[Trainer]:
    """As `prepare`; until the end no LoRA is folded into the weights and the tower stays where it is, and then the
    threads that decode are let go."""
    looked_at = _look(job, session, recipe)
    with ExitStack() as kept:
        kept.callback(looked_at.pictures.close)
        # In one turn: whoever draws next must find that a run has the tower, or it might place it anew.
        with session.lease.held(job.check_stop):
            trainer = _trainer(job, session, recipe, looked_at)
            kept.enter_context(session.unfolded())
        yield trainer


def prepare(job: Job, session: Session, recipe: Recipe) -> Trainer:
    """Everything that comes before the first step. Writes nothing. What is quick to check is checked first."""
    looked_at = _look(job, session, recipe)
    with session.lease:
        return _trainer(job, session, recipe, looked_at)


class _LookedAt(NamedTuple):
    """What is known to do, before the model is at work."""

    adapter: Adapter
    upstream: list[Adapter]
    framing: Framing
    samples: Dataset
    pictures: PictureCache
    sequences: CaptionSequences
    held_out: Sequence[int]


def _look(job: Job, session: Session, recipe: Recipe) -> _LookedAt:
    refuse_training_on_quantised(session.snapshot)
    with session.unfolded():
        pass  # said now rather than when the data have been gone through
    upstream, adapter = _upstream(session, recipe), new_adapter(session, recipe)
    preview_settings(session.config, recipe)
    framing = Framing(
        recipe.data.cap_max_pixels,
        session.config.token_pixels,
        recipe.data.snap_bucket,
        recipe.data.fit,
        recipe.data.upscale,
    )
    return _LookedAt(adapter, upstream, framing, *_checked_data(job, session, recipe, framing))


def _trainer(job: Job, session: Session, recipe: Recipe, looked_at: _LookedAt) -> Trainer:
    """The lease is held."""
    adapter, upstream, framing, samples, pictures, sequences, kept_back = looked_at
    config, device, sizes = session.config, session.device, Sizes(samples, framing)
    prefixes = build_caption_prefixes(session, recipe, sequences, upstream)
    plan = first_plan(session, recipe, sizes, sequences)
    base = with_full_tensors(session.base_generation, upstream)
    adapter.full = _unfrozen(base, select_unfrozen(config, recipe.unfreeze))
    parameters = [*adapter.parameters(), *adapter.full.values()]
    optimizer, optimizer_words = make_optimizer(recipe.train, parameter_groups(recipe.train, adapter), device)
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
    order = Order(recipe.train, len(samples.turns), lambda place: sizes[samples.turns[place]])
    data = TrainingSet(samples, pictures, prefixes, order, kept_back)
    return Trainer(config, base, adapter, optimizer, recipe, data, plan, upstream)


def state_at_start(session: Session, trainer: Trainer) -> dict[str, Any]:
    """What `trainer.restore` takes to begin the run again, to the bit as it began."""
    recipe = trainer.recipe
    adapter = new_adapter(session, recipe)
    adapter.full = _unfrozen(trainer.base, list(trainer.adapter.full))
    optimizer, _ = make_optimizer(recipe.train, parameter_groups(recipe.train, adapter), session.device)
    weights = named_weights(adapter)
    return {
        "weights": weights,
        "ema": weights if trainer.ema else {},
        "optimizer": optimizer.state_dict(),
        "guard": Guard(recipe.train).state(),
    }


def new_adapter(session: Session, recipe: Recipe) -> Adapter:
    """The LoRA to be trained, as it starts. Raises U1Error for a spec or pattern that this model has nothing for."""
    config, lora = session.config, recipe.lora
    select_unfrozen(config, recipe.unfreeze)
    if not (lora.spec or lora.preset):
        return Adapter({}, kinds=frozenset({config.kind}))
    plan = plan_lora(config, lora.spec or lora.preset, lora.dropout)
    adapter = Adapter.create(plan, recipe.train.seed, session.device)
    for module in adapter.modules.values() if lora.rslora else ():
        # alpha / rank is what every loader applies: this alpha makes alpha / sqrt(rank) of it (arXiv 2312.03732).
        module.alpha = torch.tensor(module.alpha * module.rank**0.5).item()
    return adapter


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


def _checked_data(
    job: Job, session: Session, recipe: Recipe, framing: Framing
) -> tuple[Dataset, PictureCache, CaptionSequences, Sequence[int]]:
    """The samples, their pictures and their prompts, checked, and the numbers of those that validation keeps from
    training. Raises one U1Error for all that cannot be trained on.

    Emits "checking" (done, total pictures) and "checked" (findings: what else there is to know of the set).
    """
    data, style = recipe.data, recipe.style
    dataset = open_dataset(Path(data.data_dir).expanduser(), data.n_samples)
    if not len(dataset):
        refuse_problems(dataset.source, dataset.problems)
    _check_untriggered(dataset, style)
    pictures = training_pictures(dataset, framing, data.masks, data.cache_mb * 10**6, data.workers)
    rules = Rules(
        framing,
        style.trigger,
        data.masks,
        data.use_think_labels,
        session.tokenizer.encode,
        session.config.native_pixels,
    )
    findings = check_dataset(
        dataset, pictures, rules, on_progress=lambda *n: job.emit("checking", done=n[0], total=n[1])
    )
    refuse_problems(dataset.source, problems_of(findings))
    job.emit("checked", findings=[asdict(finding) for finding in findings])
    if data.upscale == "skip":
        dataset.leave_out_small(framing)
    may_be_held_out = triggered(dataset, style, sorted(set(dataset.turns)))
    if kept_back := held_out(may_be_held_out, recipe.validation, recipe.train.seed):
        dataset.leave_out(set(kept_back))
    return dataset, pictures, CaptionSequences(session.tokenizer, recipe, dataset), kept_back


def _check_untriggered(dataset: Dataset, style: Style) -> None:
    """Raises U1Error for a pattern that no sample's id fits, or if all samples' ids fit one."""
    for pattern in style.untriggered:
        if not any(fnmatchcase(sample.id, pattern) for sample in dataset):
            raise U1Error(
                f"style.untriggered has {pattern!r}, but {dataset.source} has no picture of such a name; names are "
                f"like {dataset[0].id!r}"
            )
    if style.untriggered and not triggered(dataset, style, range(len(dataset))):
        raise U1Error(f"style.untriggered leaves no picture in {dataset.source} with the trigger; leave some out of it")
