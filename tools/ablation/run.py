"""Makes and measures all runs of the study, several at a time; what is done is kept, so the same command goes on.

python -m tools.ablation.run OUT --workers 14 --draw-device cuda

Each run trains on one core, as nano is too small to keep a card busy. OUT/results gets a JSON file for each run
and a strip of pictures to look at.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from tools.nano.styles import render_styled
from u1_core.jobs import Job
from u1_core.lora.adapter import Adapter
from u1_core.lora.export import fold_full
from u1_core.lora.files import read_lora
from u1_core.nano import MODEL
from u1_core.session import Session
from u1_core.train.loop import train
from u1_core.weights.write import replacing

from .measures import Pictures, draw, measure_errors, measure_pictures, training_curve
from .study import BASELINE, RECIPE, SEEDS, SETTINGS, STYLES, Run, Way, runs, ways
from .world import held_out_folder, held_out_scenes, write_world

FOLDED_RANKS = (16, 64)
SHOWN = 4
"""Pictures of each way that are kept."""


@dataclass(frozen=True)
class Plan:
    """What all runs share."""

    out: Path
    steps: int
    device: str
    draw_device: str
    stop_at: float
    """No run begins after this time."""

    @property
    def world(self) -> Path:
        return self.out / "world"

    def result(self, run: Run) -> Path:
        return self.out / "results" / f"{run.name}.json"


def main() -> None:
    args = _arguments()
    plan = Plan(args.out, args.steps, args.device, args.draw_device, time.time() + 60 * args.minutes)
    (plan.out / "results").mkdir(parents=True, exist_ok=True)
    write_world(plan.world)
    wanted = [run for run in runs() if run.setting in (args.setting or SETTINGS) and run.seed in (args.seed or SEEDS)]
    left = [run for run in wanted if not plan.result(run).is_file()]
    print(f"{len(left)} of {len(wanted)} runs to make", flush=True)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(measure_base, plan), *(pool.submit(make, plan, run) for run in left)]
        for task in as_completed(tasks):
            if told := task.result():
                print(told, flush=True)


def make(plan: Plan, run: Run) -> str:
    """Train and measure one run, if there is time. Returns what to tell."""
    if time.time() > plan.stop_at:
        return ""
    torch.set_num_threads(1)
    started = time.monotonic()
    recipe = run.recipe(plan.world, plan.out / "runs", plan.steps)
    begun = (plan.out / "runs" / run.name).exists()
    outcome = train(Job(lambda job: None), _session(plan.device), recipe, resume="anyway" if begun else "")
    trained = time.monotonic()
    looks = looks_of(run, read_lora(outcome.saved.loadable).adapter)
    drawn = {
        name: {way.name: draw(_session(plan.draw_device), [adapter], way) for way in ways_of(run, name)}
        for name, adapter in looks.items()
    }
    folder = held_out_folder(plan.world, run.style, SETTINGS[run.setting])
    base_errors, *own_errors = measure_errors(_session("cpu"), recipe, folder, [None, *looks.values()])
    base = base_pictures(plan)
    found = {
        name: {way: measure_pictures(pictures, base, run.style) for way, pictures in drawn[name].items()}
        for name in looks
    }
    facts = {
        **vars(run),
        "steps": plan.steps,
        "curve": training_curve(outcome.folder),
        "base_errors": base_errors,
        "looks": {name: {"ways": found[name], "errors": own_errors[at]} for at, name in enumerate(looks)},
        "train_s": round(trained - started, 1),
        "measure_s": round(time.monotonic() - trained, 1),
    }
    _save_strip(plan.result(run), drawn[""])
    plan.result(run).write_text(json.dumps(facts), encoding="utf-8")
    style = found[""][Way(SETTINGS[run.setting].trigger).name]["style"]
    return f"{run.name}: style {style:.2f}, {facts['train_s']:.0f} + {facts['measure_s']:.0f} s"


def looks_of(run: Run, adapter: Adapter) -> dict[str, Adapter]:
    """The result under the name "", and of the baseline what becomes of it in programs that take low-rank terms only:
    its LoRA file alone, and exports into which the tensors trained whole are folded."""
    if run.setting != BASELINE:
        return {"": adapter}
    read = _session("cpu").snapshot.read
    folded = {f"folded at rank {rank}": fold_full(adapter, read, rank)[0] for rank in FOLDED_RANKS}
    return {"": adapter, "without the tensors trained whole": replace(adapter, full={}), **folded}


def ways_of(run: Run, look: str) -> list[Way]:
    return [Way(SETTINGS[run.setting].trigger)] if look else ways(run.setting)


def measure_base(plan: Plan) -> str:
    """The model without a LoRA, and the styles as they are: what the runs are to be seen between."""
    result = plan.out / "results" / "base.json"
    if result.is_file():
        return ""
    torch.set_num_threads(1)
    session = _session(plan.draw_device)
    drawn = {way.name: draw(session, [], way) for way in ways(BASELINE)}
    _save_strip(result, drawn)
    base = base_pictures(plan)
    found: dict[str, Mapping[str, Any]] = {}
    for style in STYLES:
        target = [render_styled(scene, style) for scene in held_out_scenes()]
        _save_strip(plan.out / "results" / f"{style}.json", {"the style": target})
        ways_found = {way: measure_pictures(pictures, base, style) for way, pictures in drawn.items()}
        found[style] = {"base": ways_found, "target": measure_pictures(target, base, style)}
    result.write_text(json.dumps(found), encoding="utf-8")
    return "base model measured"


def base_pictures(plan: Plan) -> Pictures:
    """What the model draws of the captions without trigger or LoRA: where the movement towards a style starts."""
    path = plan.out / "base_pictures.safetensors"
    if not path.is_file():
        drawn = draw(_session(plan.draw_device), [], Way("none"))
        with replacing(path, overwrite=True) as file:
            file.write(save({"pictures": torch.from_numpy(np.stack(drawn))}))
    return list(load_file(path)["pictures"].numpy())


@cache
def _session(device: str) -> Session:
    return Session.open(MODEL, device, "fp32")


def _save_strip(result: Path, pictures: Mapping[str, Pictures]) -> None:
    """The first pictures of each way, a row each, without gaps."""
    rows = [np.concatenate(drawn[:SHOWN], axis=1) for drawn in pictures.values()]
    image = Image.fromarray(np.concatenate(rows))
    image.save(result.with_suffix(".jpg"), quality=90, subsampling=0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--device", default="cpu", help="where runs train: cpu (default), cuda or cuda:N")
    parser.add_argument("--draw-device", default="cpu", help="where pictures are drawn")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="begin no run after so long")
    parser.add_argument("--steps", type=int, default=RECIPE.train.steps)
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one; may be given again")
    parser.add_argument("--seed", action="append", choices=SEEDS, type=int, help="likewise")
    return parser.parse_args()


if __name__ == "__main__":
    main()
