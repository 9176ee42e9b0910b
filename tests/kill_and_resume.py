"""Kills a training run at random moments, resumes it each time, and compares the result with an uninterrupted run's.

    python tests/kill_and_resume.py --kills 30 --steps 200 [--device cuda]

On a card the model is wider and its pictures larger, so that the kernels of real runs are used. Exits with 0 if the
LoRA, the tensors trained whole and the log's steps are the same, to the byte.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from u1_core.weights.random_model import write_random_snapshot
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config, write_tiny_tokenizer

COMMAND = "import sys, torch; torch.set_num_threads(1); from u1_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
RESULTS = ("tiny.safetensors", "tiny.full.safetensors")


def write_inputs(folder: Path, steps: int, every: int, device: str, optimizer: str) -> Path:
    """A tiny model, three pictures, and a recipe with all that a checkpoint has to hold. Returns the recipe."""
    config, pixels = tiny_config("u1") | {"max_image_seq_len": 64}, 32 * 32
    if device != "cpu":
        config["llm_config"] |= {"hidden_size": 512, "intermediate_size": 768, "head_dim": 128}
        config["vision_config"] |= {"llm_hidden_size": 512}
        config["max_image_seq_len"], pixels = 1024, 256 * 256
    write_random_snapshot(folder / "model", config, 0, torch.float32, head_width=TINY_HEAD_WIDTH)
    write_tiny_tokenizer(folder / "model")
    (folder / "pictures").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((int(2 * pixels**0.5),) * 2).save(folder / "pictures" / f"{index}.png")
        (folder / "pictures" / f"{index}.txt").write_text(f"picture number {index}", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"run_name: tiny\nmodel: {folder / 'model'}\n"
        f"data: {{data_dir: {folder / 'pictures'}, cap_max_pixels: {pixels}}}\n"
        f"lora: {{dropout: 0.1}}\ntrain: {{steps: {steps}, lr: 1e-3, checkpoint_every: {every}, lr_schedule: cosine, "
        "warmup_steps: 5, ema_decay: 0.9, grad_accum: 2, batch_size: 2, cond_dropout_text: 0.2, "
        f"max_grad_norm: 1, optimizer: {optimizer}}}\n"
        f"validation: {{every: {3 * every}}}\npreviews: {{every: {2 * every}, steps: 2, size: 32x32}}\n"
        f"runtime: {{device: {device}, deterministic: {'false' if device == 'cpu' else 'true'}}}\n",
        encoding="utf-8",
    )
    return recipe


def start(recipe: Path, out: Path, resume: bool) -> subprocess.Popen:
    options = ["train", str(recipe), "--out", str(out), *(["--resume"] if resume else [])]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait(process: subprocess.Popen) -> None:
    error = process.communicate()[1]
    assert process.returncode == 0, error


def steps_in_log(folder: Path) -> list[int]:
    records = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["step"] for record in records if "event" not in record]


def kill_and_resume(
    root: Path, kills: int, steps: int, every: int, seed: int, device: str = "cpu", optimizer: str = "auto"
) -> int:
    """Returns how often the run was killed while it was training. Raises AssertionError if anything differs."""
    recipe, moments = write_inputs(root, steps, every, device, optimizer), random.Random(seed)
    whole = start(recipe, root / "whole", resume=False)  # beside the others: there is more than one core
    run, killed = root / "killed" / "tiny", 0
    while killed < kills and not (run / RESULTS[0]).is_file():
        process = start(recipe, root / "killed", resume=run.is_dir())
        log, target = run / "log.jsonl", moments.randint(1, max(1, 2 * every))
        before = None
        while process.poll() is None:
            length = len(log.read_bytes().splitlines()) if log.is_file() else 0
            resumed = (run / "status.json").is_file() and f'"pid": {process.pid},' in (run / "status.json").read_text()
            before = length if before is None and resumed else before
            if before is not None and length >= before + target:
                time.sleep(moments.random() * 0.1)
                process.kill()
                killed += process.wait() != 0
                break
            time.sleep(0.002)
        assert process.wait() in (0, -9, 1), process.stderr.read()
        process.stderr.close()
    if not (run / RESULTS[0]).is_file() or killed == kills:
        wait(start(recipe, root / "killed", resume=True))
    wait(whole)
    for name in RESULTS:
        assert (run / name).read_bytes() == (root / "whole" / "tiny" / name).read_bytes(), f"{name} differs"
    assert steps_in_log(run) == steps_in_log(root / "whole" / "tiny"), "the log has other steps"
    return killed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 30), ("steps", 200), ("every", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--optimizer", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"killed {kill_and_resume(Path(folder), **vars(options))} times: the same bytes")
