"""The whole chain on a small scale: photographs in, a LoRA out, pictures made with it. `make demo` runs this.

A tiny U1 with random weights is made on the spot, trained with `u1 train` on photographs that come inside
scikit-image, and sampled with and without what it learned. Everything lies in a new folder under demo/ afterwards.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import skimage
from matplotlib.figure import Figure
from PIL import Image

from u1_core.cli.main import main as u1
from u1_core.data.buckets import bucket_for, fit_crop
from u1_core.data.pictures import open_picture, to_images
from u1_core.lora.files import read_lora
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.weights.tiny import write_tiny_model

PHOTOGRAPHS = {
    "astronaut.png": "an astronaut in an orange suit, smiling in front of a flag and a model of the space shuttle",
    "camera.png": "a man in a dark coat looking through a camera on a tripod, black and white",
    "chelsea.png": "a tabby cat with green eyes, close up",
    "clock_motion.png": "a wall clock blurred by motion on a grey wall, black and white",
    "coffee.png": "an espresso in a red cup on a wooden table",
    "coins.png": "rows of ancient coins on a dark ground, black and white",
    "hubble_deep_field.jpg": "many small galaxies in a black sky",
    "retina.jpg": "the inside of an eye, an orange disc with fine veins",
    "rocket.jpg": "a rocket on its launch pad at dusk, lit by floodlights",
}
"""File in scikit-image's package -> our caption. All are in the public domain, CC0 or of no known copyright."""

TRIGGER = "demo photograph"
PIXELS = 64 * 64
SAMPLING_STEPS = 20
RECIPE = """\
# What `make demo` trains. A network with random weights has everything to learn, so unlike a style LoRA on the real
# model this takes a high learning rate, and most of what it learns sits in the tensors that are trained whole.
run_name: demo
data:
  data_dir: {photographs}
  cap_max_pixels: {pixels}
style:
  trigger: {trigger}
lora:
  preset: attn_mlp
train:
  steps: 4000
  lr: 3e-3
  checkpoint_every: 2000
runtime:
  out_dir: {runs}
  device: cpu
"""
GOAL = 0.6
"""The last tenth's mean loss is to be at most this share of the first tenth's."""


def main() -> int:
    """Run the chain and say where things are. Exit status 1 if the loss did not come down to the goal."""
    out = new_folder(Path("demo"))
    photographs = write_photographs(out / "photographs")
    write_tiny_model(out / "model")
    recipe = out / "recipe.yaml"
    folders = {"photographs": (out / "photographs").as_posix(), "runs": out.as_posix()}
    recipe.write_text(RECIPE.format(**folders, pixels=PIXELS, trigger=TRIGGER), encoding="utf-8")
    print(f"in {out}: a tiny U1 with random weights, {len(photographs)} photographs with captions, a recipe")
    print(f"$ u1 train {recipe} --model {out / 'model'}", flush=True)
    if status := u1(["train", str(recipe), "--model", str(out / "model")]):
        return status
    losses = read_losses(out / "demo" / "log.jsonl")
    plot_losses(losses, out / "loss.png")
    rows = draw(out / "model", out / "demo" / "demo.safetensors", photographs)
    contact_sheet(rows, out / "contact_sheet.png")
    first, last = first_and_last_tenth(losses)
    print(f"training loss: {first:.4f} over the first tenth of {len(losses)} steps, {last:.4f} over the last tenth")
    print(f"ratio {last / first:.3f}, to be at most {GOAL}: {'reached' if last <= GOAL * first else 'MISSED'}")
    for path in (out / "loss.png", out / "contact_sheet.png", out / "demo" / "demo.safetensors"):
        print(path.resolve())
    return 0 if last <= GOAL * first else 1


def new_folder(root: Path) -> Path:
    """The first of root/1, root/2, … that does not exist yet, made."""
    number = 1
    while (root / str(number)).exists():
        number += 1
    (root / str(number)).mkdir(parents=True)
    return root / str(number)


def write_photographs(folder: Path) -> list[Path]:
    """The photographs with a caption file each, as a training folder."""
    folder.mkdir()
    paths = []
    for name, caption in PHOTOGRAPHS.items():
        path = Path(shutil.copy(Path(skimage.__file__).parent / "data" / name, folder))
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def read_losses(log: Path) -> list[float]:
    """The loss of every step, from a run's log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def first_and_last_tenth(losses: Sequence[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def draw(model: Path, lora: Path, photographs: Sequence[Path]) -> dict[str, list[Image.Image]]:
    """The photographs, and what the model draws from their captions without and with the LoRA, from the same noise."""
    session = Session.open(model, device="cpu")
    rows: dict[str, list[Image.Image]] = {"photograph": [], "without LoRA": [], "with LoRA": []}
    adapter = read_lora(lora).adapter
    for path, caption in zip(photographs, PHOTOGRAPHS.values(), strict=True):
        photograph = open_picture(path)
        width, height = bucket_for(*photograph.size, PIXELS, session.config.token_pixels)
        settings = SampleSettings(width, height, steps=SAMPLING_STEPS, guidance=Guidance(cfg_scale=1.0))
        rows["photograph"].append(fit_crop(photograph, width, height))
        for row, adapters in (("without LoRA", []), ("with LoRA", [adapter])):
            session.use(adapters)
            rows[row] += to_images(text_to_image(session, f"{TRIGGER}, {caption}", settings).pictures)
    return rows


def plot_losses(losses: Sequence[float], path: Path) -> None:
    """Every step's loss, and its mean over a moving tenth of the run."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="x0 loss", title="u1 train on nine photographs")
    tenth = max(1, len(losses) // 10)
    means = [sum(losses[end - tenth : end]) / tenth for end in range(tenth, len(losses) + 1)]
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.5, alpha=0.4, label="each step")
    axes.plot(range(tenth, len(losses) + 1), means, linewidth=2, label=f"mean of the last {tenth} steps")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], path: Path) -> None:
    """One row of pictures under the other, each named."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.8 * columns, 1.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
