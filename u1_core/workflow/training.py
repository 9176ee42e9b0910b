"""The nodes of training: the pictures, the spec, the run and what comes of it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from u1_core.data.check import Rules, check_dataset, problems_of, spread
from u1_core.data.dataset import open_dataset
from u1_core.data.folder import refuse_problems
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import training_pictures
from u1_core.data.pictures import save_png
from u1_core.data.sheet import contact_sheet
from u1_core.errors import U1Error
from u1_core.lora.files import FULL_FILE
from u1_core.lora.plan import LoraPlan, plan_lora
from u1_core.lora.spec import PRESETS
from u1_core.released import released_config
from u1_core.train.loop import Outcome
from u1_core.train.prefixes import CaptionSequences, build_caption_prefixes
from u1_core.train.recipe import Data, Recipe
from u1_core.train.recipe_file import load_recipe, parse_recipe
from u1_core.weights.write import replacing, write_safetensors
from u1_core.workflow.drawing import from_image_tensor, images_to_tensor
from u1_core.workflow.handles import Dataset, LoraSpec, LoraUse, Model, PrefixCache, Result, RunHandle
from u1_core.workflow.loss_chart import loss_chart
from u1_core.workflow.runs import Run
from u1_core.workflow.studio import Studio, Watch

CUSTOM = "custom"
WORKFLOW = "u1.workflow"
"""Metadata key: the workflow in API form that made a LoRA."""
SHEET_PICTURES = 12


def dataset(
    studio: Studio,
    watch: Watch,
    *,
    folder: str = "",
    trigger: str = "",
    prompt_template: str = "official",
    megapixels: float = 0.0,
    snap_bucket: bool = True,
    use_think_labels: bool = False,
    model: Model | None = None,
    images: Tensor | None = None,
    captions: str = "",
) -> Result:
    """U1StyleDataset: a folder of captioned pictures, or pictures from a workflow with a caption a line; checked."""
    if images is not None:
        root = _stored(studio.places.cache / "pictures", images, captions)
    elif folder.strip():
        root = studio.find_folder(folder)
    else:
        raise U1Error("folder is empty and no images are connected; give a folder of pictures with .txt captions")
    handle = Dataset(str(root), trigger, prompt_template, megapixels, snap_bucket, use_think_labels)
    config = studio.session(model).config if model else None
    token_pixels, native = (config.token_pixels, config.native_pixels) if config else (32, 2048**2)
    data = Data(data_dir=str(root), cap_max_pixels=round(megapixels * 2**20) or native)
    framing = Framing(data.cap_max_pixels, token_pixels, snap_bucket, data.fit, data.upscale)
    opened = open_dataset(root)
    pictures = training_pictures(opened, framing, data.masks, data.cache_mb * 10**6, data.workers)
    try:
        encode = studio.session(model).tokenizer.encode if model else None
        rules = Rules(framing, trigger, data.masks, use_think_labels, encode)
        findings = check_dataset(opened, pictures, rules, on_progress=watch.on_progress)
        refuse_problems(root, problems_of(findings))
        sheet = images_to_tensor([contact_sheet(opened, pictures, framing, spread(len(opened), SHEET_PICTURES))])
    finally:
        pictures.close()
    text = "\n".join([f"{len(opened)} pictures with captions in {root}", *map(str, findings)])
    return Result((handle, sheet, text), text, sheet)


def prefix_cache(studio: Studio, watch: Watch, *, model: Model, dataset: Dataset) -> Result:
    """BuildPrefixKVCache: every caption's prefix K/V, built now and kept on disk for this run and later ones."""
    folder = studio.places.cache / "prefixes"
    recipe = _recipe(_data_settings(model, dataset, studio) | {"runtime": {"prefix_dir": str(folder)}}, "")
    with studio.using(model, watch) as session, torch.inference_mode(False), torch.no_grad():
        captions = CaptionSequences(session.tokenizer, recipe, open_dataset(Path(dataset.folder)))
        tokens = [len(captions[number].ids) for number in range(len(captions))]
        before = _n_files(folder)
        built = build_caption_prefixes(session, recipe, captions, session.adapters)
        new = _n_files(folder) - before
    where = f"{new} new files in {folder}" if new else f"all found in {folder}"
    text = (
        f"{len(tokens)} captions, {min(tokens)} to {max(tokens)} tokens, {built.n_bytes / 1e6:.1f} MB of prefix K/V; "
        f"{where}"
    )
    return Result((PrefixCache(dataset, str(folder)), text), text)


def _n_files(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.safetensors"))


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
) -> Result:
    """TrainStyleLoRA: start a run in the background, or put it in line behind the one that is running."""
    settings = _data_settings(model, dataset, studio) | {
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
            "prompts": [line.strip() for line in preview_prompts.splitlines() if line.strip()],
            "steps": preview_steps,
            "cfg": preview_cfg,
        },
        "runtime": _upstream(model) | ({"prefix_dir": prefixes.folder} if prefixes else {}),
    }
    if not train_heads:
        settings["unfreeze"] = []
    checked = _recipe(settings, recipe)
    workflow = plain_workflow(watch.workflow) if watch.workflow else None
    run = studio.runs.start(checked, lambda: studio.session(model), _deliver(studio), workflow)
    if wait:
        studio.runs.wait(run.id, watch.check)
    status = studio.runs.status(run.id)
    return Result((RunHandle(run.id), run.id), f"{run.id}: {status.state}", facts={"run": run.id})


def training_run(
    studio: Studio,
    watch: Watch,
    *,
    run: RunHandle | None = None,
    name: str = "",
    step: int = 0,
    wait: bool = True,
    strength: float = 1.0,
    model: Model | None = None,
) -> Result:
    """U1TrainingRun: the LoRA that a run has saved last, or at one step, put on a model; its chart and its status."""
    run_id = run.id if run else name.strip()
    if not run_id:
        raise U1Error("no run is connected and name is empty; connect a run or write the name of one")
    if wait:
        studio.runs.wait(run_id, watch.check)
    path = studio.runs.newest_file(run_id, step)
    status, points = studio.runs.status(run_id), studio.runs.history(run_id)
    text = f"{run_id}: {status.state}, step {status.step} of {status.steps}, {path.name}"
    chart = images_to_tensor([loss_chart(points, run_id)])
    used = model.with_lora(LoraUse(str(path), strength)) if model else None
    return Result((used, str(path), chart, text), text, chart, {"run": run_id})


def plain_workflow(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in API form with nothing but each node's class and inputs: the same wherever it is run."""
    return {
        number: {"class_type": node["class_type"], "inputs": dict(node.get("inputs", {}))}
        for number, node in sorted(workflow.items())
    }


def _data_settings(model: Model, dataset: Dataset, studio: Studio) -> dict[str, Any]:
    """The parts of a recipe that a model and a dataset decide."""
    native = studio.session(model).config.native_pixels
    return {
        "model": model.name,
        "data": {
            "data_dir": dataset.folder,
            "cap_max_pixels": round(dataset.megapixels * 2**20) or native,
            "snap_bucket": dataset.snap_bucket,
            "use_think_labels": dataset.use_think_labels,
        },
        "style": {"trigger": dataset.trigger, "prompt_template": dataset.prompt_template},
    }


def _upstream(model: Model) -> dict[str, Any]:
    """The LoRA that stays in effect under the one being trained: at most one, at strength 1."""
    if not model.loras:
        return {}
    if len(model.loras) > 1 or model.loras[0].strength != 1:
        raise U1Error("a run can have one LoRA under it, at strength 1; connect the model with no other")
    return {"upstream_lora_path": model.loras[0].path, "upstream_lora_skip": list(model.loras[0].skip)}


def _recipe(settings: dict[str, Any], more: str) -> Recipe:
    """The node's fields as a recipe; what `more` (a recipe file's path, or YAML) says goes first."""
    text = more.strip()
    if text and "\n" not in text and text.lower().endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        load_recipe(path)
        text = path.read_text(encoding="utf-8-sig")
    if text:
        parse_recipe(text, "recipe")
        settings = _laid_over(settings, yaml.safe_load(text) or {})
    return parse_recipe(yaml.safe_dump(settings, allow_unicode=True), "TrainStyleLoRA")


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if inner else value
    return merged


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


def _stored(root: Path, images: Tensor, captions: str) -> Path:
    """Pictures that came as a tensor, kept as a folder: the same pictures and captions are the same folder."""
    pictures, lines = from_image_tensor(images), [line.strip() for line in captions.splitlines() if line.strip()]
    if len(lines) != len(pictures):
        raise U1Error(f"captions has {len(lines)} lines for {len(pictures)} pictures; give one a line")
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8)
    for picture in pictures:
        digest.update(picture.tobytes())
    folder = root / digest.hexdigest()
    for number, (picture, caption) in enumerate(zip(pictures, lines, strict=True)):
        path = folder / f"{number:04}.png"
        if not path.with_suffix(".txt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            save_png(picture, path, {})
            with replacing(path.with_suffix(".txt")) as file:
                file.write(f"{caption}\n".encode())
    return folder
