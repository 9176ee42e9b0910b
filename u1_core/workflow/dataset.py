"""The nodes that come before training: captioned pictures, checked, and the prefix K/V of their captions."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u1_core.data.check import Rules, check_dataset, problems_of, spread
from u1_core.data.dataset import open_dataset
from u1_core.data.folder import refuse_problems
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import training_pictures
from u1_core.data.pictures import save_png
from u1_core.data.sheet import contact_sheet
from u1_core.errors import U1Error
from u1_core.text.prompts import text_to_image
from u1_core.text.sequence import build_sequence
from u1_core.train.prefixes import CaptionSequences, build_caption_prefixes
from u1_core.train.recipe import Data
from u1_core.weights.write import replacing
from u1_core.workflow.drawing import from_image_tensor, images_to_tensor
from u1_core.workflow.handles import Dataset, Model, PrefixCache, Result
from u1_core.workflow.recipes import as_recipe, lines_of
from u1_core.workflow.studio import Studio, Watch

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
        rules = Rules(framing, trigger, data.masks, use_think_labels, encode, native if config else 0)
        findings = check_dataset(opened, pictures, rules, on_progress=watch.on_progress)
        refuse_problems(root, problems_of(findings))
        sheet = images_to_tensor([contact_sheet(opened, pictures, framing, spread(len(opened), SHEET_PICTURES))])
    finally:
        pictures.close()
    text = "\n".join([f"{len(opened)} pictures with captions in {root}", *map(str, findings)])
    return Result((handle, sheet, text), text, sheet)


def prefix_cache(studio: Studio, watch: Watch, *, model: Model, dataset: Dataset, preview_prompts: str = "") -> Result:
    """BuildPrefixKVCache: every caption's prefix K/V, built now and kept on disk for this run and later ones.

    `preview_prompts`, one a line, are those of runs that name none themselves."""
    folder = studio.places.cache / "prefixes"

    def on_progress(done: int, total: int) -> None:
        watch.check()
        watch.on_progress(done, total)

    recipe = as_recipe(data_settings(model, dataset, studio) | {"runtime": {"prefix_dir": str(folder)}}, "")
    with studio.using(model, watch) as session, torch.inference_mode(False), torch.no_grad():
        captions = CaptionSequences(session.tokenizer, recipe, open_dataset(Path(dataset.folder)))
        tokens = [len(captions[number].ids) for number in range(len(captions))]
        before = _n_files(folder)
        built = build_caption_prefixes(session, recipe, captions, session.adapters, on_progress).captions
        new = _n_files(folder) - before
        previews = lines_of(preview_prompts)
        asked = [len(build_sequence(session.tokenizer, text_to_image(prompt)).ids) for prompt in previews]
    megabytes = built.total_bytes / 1e6
    lines = [
        f"{len(tokens)} captions of {min(tokens)} to {max(tokens)} tokens: {megabytes:.1f} MB of prefix K/V",
        f"{new} new files in {folder}" if new else f"all found in {folder}",
    ]
    if session.device.type == "cuda":
        lines.append(f"{built.device_bytes / 1e6:.1f} MB fit on the card")
    if asked:
        lines.append(f"{len(asked)} preview prompts of {min(asked)} to {max(asked)} tokens, built as a run begins")
    text = "\n".join(lines)
    return Result((PrefixCache(dataset, str(folder), previews), text), text)


def _n_files(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.safetensors"))


def data_settings(model: Model, dataset: Dataset, studio: Studio) -> dict[str, Any]:
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
