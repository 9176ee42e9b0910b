"""The nodes of training: the spec, the run, and what comes of it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from u1_core.errors import U1Error
from u1_core.lora.files import FULL_FILE
from u1_core.lora.plan import LoraPlan, plan_lora
from u1_core.lora.spec import PRESETS
from u1_core.released import released_config
from u1_core.session import Session
from u1_core.train.loop import Outcome
from u1_core.train.recipe_file import load_recipe
from u1_core.weights.write import write_safetensors
from u1_core.workflow.dataset import data_settings
from u1_core.workflow.drawing import images_to_tensor
from u1_core.workflow.handles import Dataset, LoraSpec, LoraUse, Model, PrefixCache, Result, RunHandle
from u1_core.workflow.loss_chart import loss_chart
from u1_core.workflow.recipes import as_recipe, lines_of
from u1_core.workflow.run import MODEL_FILE, WORKFLOW_FILE, Run
from u1_core.workflow.run_history import Status
from u1_core.workflow.studio import Studio, Watch

CUSTOM = "custom"
WORKFLOW = "u1.workflow"
"""Metadata key: the workflow in API form that made a LoRA."""


def lora_spec(
    studio: Studio,
    watch: Watch,
    *,
    model: str = "U1-8B",
    preset: str = "attn_mlp",
    spec: str = "",
    dropout: float = 0.0,
    for_model: Model | None = None,
) -> Result:
    """LoRASpec: which modules get a LoRA, counted for a published model or for the one that is connected."""
    chosen = spec if preset == CUSTOM else preset
    config = studio.session(for_model).config if for_model else released_config(model)
    plan = plan_lora(config, chosen, dropout)
    summary = summarise(for_model.name if for_model else model, plan)
    return Result((LoraSpec(spec if preset == CUSTOM else PRESETS[preset], dropout), summary), summary)


def summarise(model: str, plan: LoraPlan) -> str:
    """A plan as a few lines of text: the totals, then a line for each target."""
    lines = [f"{model}: {len(plan.modules)} modules, {plan.parameters:,} parameters"]
    for target, (modules, parameters) in plan.by_target().items():
        lines.append(f"{target}: {modules} modules, {parameters:,} parameters")
    if plan.absent:
        lines.append(f"not in this model: {', '.join(plan.absent)}")
    return "\n".join(lines)


def train_style_lora(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    dataset: Dataset,
    spec: LoraSpec | None = None,
    prefixes: PrefixCache | None = None,
    name: str = "my_style",
    steps: int = 6000,
    lr: float = 5e-5,
    loss: str = "x0",
    t_distribution: str = "uniform",
    caption_dropout: float = 0.0,
    optimizer: str = "auto",
    grad_accum: int = 1,
    checkpoint_every: int = 600,
    seed: int = 0,
    train_heads: bool = True,
    validate_every: int = 300,
    preview_every: int = 600,
    preview_prompts: str = "",
    preview_steps: int = 50,
    preview_cfg: float = 4.0,
    wait: bool = False,
    recipe: str = "",
    resume: bool = False,
) -> Result:
    """TrainStyleLoRA: start a run in the background, or put it in line behind the one that is running.

    `resume` goes on with the run of this name, if there is one that has not come to its end."""
    settings = data_settings(model, dataset, studio) | {
        "run_name": name,
        "lora": {"preset": None, "spec": spec.spec, "dropout": spec.dropout} if spec else {},
        "train": {
            "steps": steps,
            "lr": lr,
            "loss_type": loss,
            "t_dist": t_distribution,
            "cond_dropout_text": caption_dropout,
            "optimizer": optimizer,
            "grad_accum": grad_accum,
            "checkpoint_every": checkpoint_every,
            "seed": seed,
        },
        "validation": {"every": validate_every},
        "previews": {
            "every": preview_every,
            "prompts": [*(lines_of(preview_prompts) or (prefixes.preview_prompts if prefixes else ()))],
            "steps": preview_steps,
            "cfg": preview_cfg,
        },
        "runtime": {"budget": model.budget} | _upstream(model) | ({"prefix_dir": prefixes.folder} if prefixes else {}),
    }
    if not train_heads:
        settings["unfreeze"] = []
    checked = as_recipe(settings, recipe)
    workflow = plain_workflow(watch.workflow) if watch.workflow else None
    if resume and studio.runs.has(checked.run_name):
        run_id = checked.run_name
        status = studio.runs.status(run_id)
        if status.resumable or (status.state == "finished" and status.step < checked.train.steps):
            studio.runs.start(checked, model, _opened(studio), _deliver(studio), workflow, watch.node, resumed=True)
    else:
        run_id = studio.runs.start(checked, model, _opened(studio), _deliver(studio), workflow, watch.node).id
    if wait:
        studio.runs.wait(run_id, watch.check, watch.on_progress)
    return Result((RunHandle(run_id), run_id), f"{run_id}: {studio.runs.status(run_id).state}", facts={"run": run_id})


def training_run(
    studio: Studio,
    watch: Watch,
    *,
    run: RunHandle | None = None,
    name: str = "",
    step: int = 0,
    live: bool = False,
    wait: bool = True,
    strength: float = 1.0,
    model: Model | None = None,
) -> Result:
    """U1TrainingRun: the LoRA that a run has saved last, or at one step, put on a model; its chart and its status.

    `live` does not wait: it takes the weights as they are each time they are used, for as long as the run trains."""
    run_id = run.id if run else name.strip()
    if not run_id:
        raise U1Error("no run is connected and name is empty; connect a run or write the name of one")
    if live and step:
        raise U1Error(f"live weights are those of the present step: turn live off for step {step}, or leave step at 0")
    if wait and not live:
        studio.runs.wait(run_id, watch.check, watch.on_progress)
    live = live and studio.runs.is_training(run_id)
    path = None if live else studio.runs.newest_file(run_id, step)
    status = studio.runs.status(run_id)
    points, marks = studio.runs.history(run_id)
    text = f"{run_id}: {status.state}, step {status.step} of {status.steps}, {path.name if path else 'live weights'}"
    if shares := [mark["percent"] for mark in marks if "percent" in mark]:
        text += f", validation {shares[-1]:.1f}% of base"
    chart = images_to_tensor([loss_chart(points, run_id, marks)])
    lora = LoraUse("", strength, live=run_id) if live else LoraUse(str(path), strength)
    used = model.with_lora(lora) if model else None
    return Result((used, str(path or ""), chart, text), text, chart, {"run": run_id})


def act_on_run(studio: Studio, run_id: str, action: str) -> Status:
    """As `Runs.act`; "resume" begins a run anew that has ended before its time. Raises U1Error."""
    if action == "resume" and studio.runs.status(run_id).resumable:
        return _resume(studio, run_id)
    return studio.runs.act(run_id, action)


def plain_workflow(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in API form with nothing but each node's class and inputs: the same wherever it is run."""
    return {
        number: {"class_type": node["class_type"], "inputs": dict(node.get("inputs", {}))}
        for number, node in sorted(workflow.items())
    }


def _upstream(model: Model) -> dict[str, Any]:
    """The LoRA that stays in effect under the one being trained: at most one, at strength 1."""
    if not model.loras:
        return {}
    if len(model.loras) > 1 or model.loras[0].strength != 1:
        raise U1Error("a run can have one LoRA under it, at strength 1; connect the model with no other")
    return {"upstream_lora_path": model.loras[0].path, "upstream_lora_skip": list(model.loras[0].skip)}


def _resume(studio: Studio, run_id: str) -> Status:
    """Have a run go on from its last checkpoint, by what its folder says of recipe and model."""
    folder = studio.runs.folder(run_id)
    recipe = replace(load_recipe(folder / "recipe.yaml"), run_name=run_id)
    model = Model(**(_read_json(folder / MODEL_FILE) or {"name": recipe.model or "", "path": ""}))
    if not Path(model.path or "?").exists():
        model = replace(model, path=str(studio.find_model(model.name)))
    workflow = _read_json(folder / WORKFLOW_FILE)
    return studio.runs.start(recipe, model, _opened(studio), _deliver(studio), workflow, resumed=True).status


def _read_json(path: Path) -> dict[str, Any] | None:
    """A file that the run has left beside its recipe; None if it was cut off before that."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise U1Error(f"{path}: cannot be read ({problem}); delete it to go on without it") from None


def _opened(studio: Studio) -> Callable[[Run], AbstractContextManager[Session]]:
    """How a run comes by its session: weights that are read for it are told of as its own progress."""

    @contextmanager
    def opened(run: Run) -> Iterator[Session]:
        watch = Watch(on_progress=lambda done, total: run.job.emit("reading", done=done, total=total))
        with studio.watched(watch):
            session = studio.session(run.model)
            session.unfold()
            yield session

    return opened


def _deliver(studio: Studio) -> Callable[[Run, Outcome], None]:
    """Copies a run's LoRA to the first LoRA folder, under u1, with the workflow in its metadata."""

    def finish(run: Run, outcome: Outcome) -> None:
        stem = _free_stem(studio.places.loras[0] / "u1" / run.id)
        for source, ending in ((outcome.saved.full, ".full.safetensors"), (outcome.saved.lora, ".safetensors")):
            if source is None:
                continue
            with safe_open(str(source), framework="pt", device="cpu") as file:
                metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if FULL_FILE in metadata:
                metadata[FULL_FILE] = f"{stem.name}.full.safetensors"
            if run.workflow:
                metadata[WORKFLOW] = json.dumps(run.workflow, sort_keys=True, ensure_ascii=False)
            # safetensors hands metadata over in no order of its own.
            write_safetensors(stem.with_name(stem.name + ending), tensors, dict(sorted(metadata.items())))

    return finish


def _free_stem(wanted: Path) -> Path:
    """`wanted`, or with a number behind it if there is a LoRA of that name."""
    stem, number = wanted, 1
    while any(stem.with_name(stem.name + ending).exists() for ending in (".safetensors", ".full.safetensors")):
        number += 1
        stem = wanted.with_name(f"{wanted.name}-{number}")
    return stem
