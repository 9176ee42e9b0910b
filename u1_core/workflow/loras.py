"""The nodes that open a model and put LoRAs on it, or write them out."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from u1_core.errors import U1Error
from u1_core.lora.export import fold_full
from u1_core.lora.files import write_lora
from u1_core.lora.kinds import KIND_NAMES
from u1_core.lora.merge import merge_loras
from u1_core.model.config import U1Config
from u1_core.plan.budget import Budget, free_bytes, gib
from u1_core.plan.costs import Bus
from u1_core.plan.estimate import Rates, estimate
from u1_core.plan.machine import host_free_bytes
from u1_core.plan.planner import choose_plan
from u1_core.plan.step_model import StepModel
from u1_core.plan.work import SamplingWork
from u1_core.train.settings import FOLDER_NAME
from u1_core.weights.download import resolve_model
from u1_core.weights.host_memory import pin_limit_bytes
from u1_core.weights.snapshot import Snapshot
from u1_core.workflow.handles import LoraUse, Model, Result
from u1_core.workflow.studio import Studio, Watch

SINGLE, MERGED = "one LoRA file", "merged model"
FORMS = (SINGLE, MERGED)
NO_GGUF = "none"
MERGED_DTYPES = {"as it is": None, "bf16": torch.bfloat16, "fp32": torch.float32}


def load_model(
    studio: Studio,
    watch: Watch,
    *,
    model: str,
    dtype: str = "auto",
    hub_id: str = "",
    budget: str = "auto",
    gguf: str = NO_GGUF,
) -> Result:
    """LoadU1Bf16Offload: check a model and open it. Its weights are read when they are first needed."""
    if gguf != NO_GGUF:
        name, path = gguf, studio.find_gguf(gguf)
    elif hub_id.strip():
        name, path = hub_id.strip(), resolve_model(hub_id.strip(), True, watch.on_progress)
    else:
        name, path = model, studio.find_model(model)
    limit = Budget.parse(budget)
    opened = Model(name, str(path), dtype, budget.strip())
    session = studio.session(opened)
    config, total = session.config, session.snapshot.total_bytes
    shown = str(session.dtype).removeprefix("torch.")
    text = (
        f"{opened.name}: {KIND_NAMES[config.kind]}, {config.layers} layers, {total / 1e9:.2f} GB on disk; "
        f"computes in {shown} on {session.device}"
    )
    if session.device.type == "cuda":
        text += f"; {planned(config, session.dtype, limit, free_bytes(session.device))}"
    return Result((opened, text), text)


def planned(config: U1Config, dtype: torch.dtype, budget: Budget, free: int) -> str:
    """What drawing one guided picture of the model's own size takes, in words: by estimates, before anything is loaded.

    `free` bytes are to be had on the card. Raises U1Error where the budget is too small.
    """
    side = math.isqrt(config.native_tokens) * config.token_pixels
    work = SamplingWork(config=config, dtype=dtype, width=side, height=side, batch=1, branches=2, prefix_tokens=512)
    rates = Rates()
    bus = Bus(rates.bus, rates.pageable, pin_limit_bytes())
    model = StepModel.of(work, estimate(work, rates), bus, host_free_bytes())
    plan = choose_plan(model, budget, free)
    resident, peak = len(plan.placement.resident), gib(plan.peak_bytes)
    return f"budget {budget}: {resident} of {config.layers} layers stay on the card, {peak} at {side}x{side}"


def load_lora(studio: Studio, watch: Watch, *, model: Model, lora: str, strength: float = 1.0) -> Result:
    """LoadU1LoRA: the model with one more LoRA, checked against it."""
    return _with_lora(studio, model, LoraUse(str(studio.find_lora(lora)), strength))


def stack_8step(
    studio: Studio, watch: Watch, *, model: Model, lora: str, skip: str = "", folded: bool = False
) -> Result:
    """StackUpstream8Step: the model with the released 8-step LoRA under whatever follows; taken off by removing the
    node. `skip` names modules to leave out, one a line; `folded` writes it into the loaded weights."""
    left_out = tuple(line.strip() for line in skip.splitlines() if line.strip())
    return _with_lora(studio, model, LoraUse(str(studio.find_lora(lora)), 1.0, left_out, folded))


def export_lora(
    studio: Studio,
    watch: Watch,
    *,
    model: Model,
    form: str = FORMS[0],
    name: str = "exported",
    rank: int = 64,
    dtype: str = "as it is",
) -> Result:
    """ExportU1LoRA: the model's one LoRA as a single file for any loader, or all of them written into the weights.

    Never overwrites: an existing name is refused."""
    if not model.loras:
        raise U1Error("the model has no LoRA to export; put LoadU1LoRA before this node")
    if not FOLDER_NAME.holds(name):
        raise U1Error(f"name is {name!r}; allowed: {FOLDER_NAME.words}")
    if form == MERGED:
        return _merged(studio, watch, model, studio.places.output / "u1_models" / name, dtype)
    if len(model.loras) > 1:
        raise U1Error(f"the model has {len(model.loras)} LoRAs, and a LoRA file holds one; choose {MERGED}")
    adapter, lines = studio.adapter(model.loras[0]), []
    if adapter.full:
        snapshot = studio.session(model).snapshot
        adapter, folded = fold_full(adapter, snapshot.read, rank)
        lines = [f"{one.name}: rank {one.rank}, {one.error:.1%} lost {one.reason}".rstrip() for one in folded]
    if len(adapter.kinds) > 1:
        adapter = replace(adapter, kinds=frozenset({studio.session(model).config.kind}))
    path = studio.places.loras[0] / "u1" / f"{name}.safetensors"
    write_lora(path, adapter)
    text = "\n".join([f"{path}: {len(adapter.modules)} modules", *lines])
    return Result((str(path), text), text)


def _merged(studio: Studio, watch: Watch, model: Model, out: Path, dtype: str) -> Result:
    snapshot = Snapshot.open(Path(model.path))

    def on_progress(done: int, total: int) -> None:
        watch.check()
        watch.on_progress(done, total)

    adapters = [studio.adapter(lora) for lora in model.loras]
    changed = merge_loras(snapshot, adapters, out, MERGED_DTYPES[dtype], progress=on_progress)
    text = f"{out}: {changed} of {len(snapshot.tensors)} tensors changed"
    return Result((str(out), text), text)


def _with_lora(studio: Studio, model: Model, lora: LoraUse) -> Result:
    adapter = studio.adapter(lora)
    adapter.check(studio.session(model).config)
    text = f"{adapter.name}: {len(adapter.modules)} modules, {len(adapter.full)} whole tensors, x{lora.strength:g}"
    text += ", in the weights" * lora.folded
    return Result((model.with_lora(lora), text), text)
