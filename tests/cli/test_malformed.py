"""Recipes, pictures, captions, tables, masks, LoRAs and models as they arrive: broken, cut short, misnamed, mistyped.

Every case of the one list goes the way of its user, through `u1 train`. Each ends with one line on standard error that
says what is wrong and where, exit status 2, nothing on standard output, and every file on disk as it was.
"""

import io
import random
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from u1_core.cli.main import main
from u1_core.train.recipe import field_docs

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
CAPTION = b"a caption of its own"


@dataclass(frozen=True)
class Case:
    """What is wrong, the files that lie beside a good picture in set/ and a good model, and words of the message."""

    name: str
    says: str
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    """Path -> contents; None takes the file away. "model/..." is a copy of the good model."""
    settings: str = ""
    """More lines of the recipe."""
    recipe: bytes | None = None
    """The whole recipe, in place of a good one."""
    data: str = "set"


def encoded(format: str, pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


MISTAKES = {
    "train:\n  losstype: x0": "recipe.yaml line 2: train.losstype is not a setting; did you mean 'loss_type'?",
    "\nlr: 3": "recipe.yaml line 2: lr is not a setting; lr belongs under `train:`",
    "train: {run_name: a}": "train.run_name is not a setting; run_name belongs at the top, in no section",
    "trian: {}": "recipe.yaml line 1: trian is not a setting; did you mean 'train'?",
    "? [a]\n: b": "recipe.yaml line 1: a list is not a setting",
    "train:\n  lr: 1\n  lr: 2": "recipe.yaml line 3: train.lr is set twice; keep one of the two",
    "train: 3": "recipe.yaml line 1: train is 3; it is to be a table of `name: value` lines",
    "- a": "recipe.yaml line 1: the recipe is a list; it is to be a table of `name: value` lines",
    "train: {lr: fast}": "recipe.yaml line 1: train.lr is 'fast'; allowed: a number above 0",
    "train: {lr: -1e-4}": "recipe.yaml line 1: train.lr is -0.0001; allowed: a number above 0",
    "train: {lr: .nan}": "recipe.yaml line 1: train.lr is .nan; allowed: a number above 0",
    "train: {lr: [1]}": "recipe.yaml line 1: train.lr is a list; allowed: a number above 0",
    "train: {lr: }": "recipe.yaml line 1: train.lr is empty; allowed: a number above 0",
    "train: {steps: 1.5}": "recipe.yaml line 1: train.steps is 1.5; allowed: a whole number, 1 or more",
    "train: {steps: 1:30}": "recipe.yaml line 1: train.steps is 1:30; allowed: a whole number, 1 or more",
    "train: {shuffle: 1}": "recipe.yaml line 1: train.shuffle is 1; allowed: true or false",
    "train: {loss_type: vv}": "recipe.yaml line 1: train.loss_type is 'vv'; allowed: one of x0, v, x0_huber, v_huber"
    "; did you mean 'v'?",
    "lora: {preset: atn_only}": "allowed: one of default, attn_only, attn_mlp, attn_only_no_head, attn_mlp_no_head, "
    "official_r128, a3b_moe_r8, a3b_moe_router_r8; did you mean 'attn_only'?",
    "lora:\n  spec: attn=r64;mpl=r3": "recipe.yaml line 2: lora.spec will not do: LoRA spec entry 'mpl=r3': there is "
    "no target 'mpl'; did you mean 'mlp'?",
    "unfreeze: a": "recipe.yaml line 1: unfreeze is 'a'; allowed: a list, each item a regular expression",
    "unfreeze:\n- a\n- '('": "recipe.yaml line 3: unfreeze[1] is '('; allowed: a regular expression",
    "lora: {preset: ~}\nunfreeze: []": "recipe.yaml line 2: unfreeze is empty, and so are lora.preset and lora.spec: "
    "nothing would be trained",
    "train:\n  cond_dropout_text: .6\n  cond_dropout_both: 0.6": "recipe.yaml line 3: train.cond_dropout_both and "
    "train.cond_dropout_text are 1.2 together; allowed: 1 at most",
    "a: b: c": "recipe.yaml line 1: not valid YAML: mapping values are not allowed here",
    "data:\n\t- a": "recipe.yaml line 2: not valid YAML: found character '\\t' that cannot start any token",
    "a: 1\n---\nb: 2": "recipe.yaml line 2: not valid YAML: but found another document",
    "\0": "recipe.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed",
    "[" * 3000: "recipe.yaml: not valid YAML",
}

NO_TEXT = {
    "latin-1": "trigger: ä".encode("latin-1"),
    "utf-16": "run_name: a".encode("utf-16"),
    "a picture": encoded("PNG"),
    "noise": random.Random(7).randbytes(300),
    "half a character": b"run_name: " + "猫".encode()[:2],
}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth=8, colour=2, data=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def damaged(whole, seed):
    """`whole` with its latter half replaced by other bytes: what has checksums is found out."""
    noise = random.Random(seed).randbytes(len(whole) // 2)
    return whole[: len(whole) - len(noise)] + noise


def picture_files() -> Iterator[tuple[str, bytes]]:
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        whole = encoded(format)
        for share in (0.1, 0.3, 0.6, 0.8):
            yield f"{format} cut at {share}", whole[: int(len(whole) * share)]
        yield f"{format} with its head torn off", whole[12:]
    for seed in range(3):
        yield f"PNG damaged {seed}", damaged(encoded("PNG"), seed)
        yield f"noise {seed}", random.Random(seed).randbytes(500)
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "text", b"a caption that was saved as a picture"
    yield "utf-16 text", "picture".encode("utf-16")
    yield "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "zeros", bytes(4096)
    yield "a git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield "heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    yield "a bomb of 4 gigapixels", png_of(65535, 65535)
    yield "a size of 2^31", png_of(2**31 - 1, 2**31 - 1)
    yield "no width", png_of(0, 10)
    yield "no pixels", png_of(64, 48)
    yield "too few pixels", png_of(64, 48, data=bytes(100))
    yield "a depth that is none", png_of(64, 48, depth=7, data=bytes(9999))
    yield "a wrong checksum", encoded("PNG")[:29] + b"\0\0\0\0" + encoded("PNG")[33:]
    yield "a jpeg of nothing", b"\xff\xd8\xff\xd9"
    yield "a jpeg head", encoded("JPEG")[:20]
    yield "32-bit floats", encoded("TIFF", np.float32(PIXELS[..., 0]))
    yield "32-bit integers", encoded("TIFF", np.int32(PIXELS[..., 0]) * 10**6)


CAPTIONS = {
    "none": None,
    "empty": b"",
    "spaces and lines": b" \n\t\r\n ",
    "only a byte order mark": b"\xef\xbb\xbf",
    "utf-16": "a cat".encode("utf-16"),
    "latin-1": "ein schönes Bild".encode("latin-1"),
    "cut inside a character": "猫".encode()[:2],
    "a picture": encoded("PNG"),
    "nothing but reasoning": b"---think---\nwhy",
    "a picture mark": b"see <image> here",
    "many picture marks": b"<image>" * 50,
    "picture tokens": b"a <img> in it",
    "context tokens": b"<IMG_CONTEXT>",
    "an end of picture": b"</img> and on",
    "a token at the end": b"a cat <img>",
    "zero bytes that are no text": b"\xff\xfe\0\0",
}

GOOD = encoded("PNG")


def table_bytes(**columns):
    file = io.BytesIO()
    rows = {"sample_id": ["a", "b"], "caption": ["a cat", "a dog"], "image": [GOOD, GOOD]} | columns
    pyarrow.parquet.write_table(pyarrow.table({n: v for n, v in rows.items() if v is not None}), file)
    return file.getvalue()


def table_files() -> Iterator[tuple[str, str, bytes]]:
    whole = table_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        yield f"parquet cut at {share}", "t.parquet", whole[: int(len(whole) * share)]
        yield f"arrow cut at {share}", "t.arrow", _arrow(whole)[: int(len(_arrow(whole)) * share)]
    yield "text named parquet", "t.parquet", b"caption,image\na cat,a.png\n"
    yield "text named arrow", "t.arrow", b"caption,image\na cat,a.png\n"
    yield "arrow named parquet", "t.parquet", _arrow(whole)
    yield "parquet named arrow", "t.arrow", whole
    yield "a wrong end", "t.parquet", whole[:-4] + b"PAR2"
    yield "a footer of noise", "t.parquet", whole[:-200] + random.Random(0).randbytes(192) + whole[-8:]
    yield "a footer too long", "t.parquet", whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "no captions", "t.parquet", table_bytes(caption=None)
    yield "no pictures", "t.parquet", table_bytes(image=None)
    yield "numbers for captions", "t.parquet", table_bytes(caption=[1, 2])
    yield "lists for captions", "t.parquet", table_bytes(caption=[["a"], ["b"]])
    yield "paths for pictures", "t.parquet", table_bytes(image=["a.png", "b.png"])
    yield "pixels for pictures", "t.parquet", table_bytes(image=[[1, 2], [3]])
    yield "structs without bytes", "t.parquet", table_bytes(image=[{"path": "a"}, {"path": "b"}])
    yield "an empty caption", "t.parquet", table_bytes(caption=["a cat", ""])
    yield "a null caption", "t.parquet", table_bytes(caption=["a cat", None])
    yield "a null picture", "t.parquet", table_bytes(image=[GOOD, None])
    yield "a broken picture", "t.parquet", table_bytes(image=[GOOD, GOOD[:500]])
    yield "texts for sizes", "t.parquet", table_bytes(width=["a", "b"])
    yield (
        "no rows",
        "t.parquet",
        table_bytes(sample_id=[], caption=pyarrow.array([], "string"), image=pyarrow.array([], "binary")),
    )
    yield "only nulls", "t.parquet", table_bytes(caption=[None, None])
    pages = bytearray(whole)
    pages[40:400] = random.Random(1).randbytes(360)
    yield "damaged pages", "t.parquet", bytes(pages)


def _arrow(parquet):
    rows, file = pyarrow.parquet.read_table(io.BytesIO(parquet)), io.BytesIO()
    with pyarrow.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    return file.getvalue()


MASKS = {
    "black": encoded("PNG", np.zeros((48, 64), dtype=np.uint8)),
    "of another shape": encoded("PNG", np.full((64, 48), 255, dtype=np.uint8)),
    "cut short": GOOD[:200],
    "empty": b"",
    "text": b"a mask",
}

WEIGHTS = save(
    {"a.lora_down.weight": torch.zeros(2, 4), "a.lora_up.weight": torch.zeros(4, 2), "a.alpha": torch.ones(())}
)


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


LORAS = {
    "empty": b"",
    "text": b"a LoRA",
    "a pickle": b"PK\x03\x04" + bytes(100),
    "cut short": WEIGHTS[:-20],
    "cut in its header": WEIGHTS[:40],
    "a header that is no JSON": header(b"{" * 64),
    "a header of a list": header(b"[1, 2]"),
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "no tensors": save({}),
    "of modules that U1 has not": WEIGHTS,
    "half a pair": save(
        {"language_model.model.layers.0.self_attn.q_proj_mot_gen.lora_down.weight": torch.zeros(2, 64)}
    ),
    "tensors of something else": save({"unet.conv.weight": torch.zeros(3)}),
}

MODELS: dict[str, dict[str, bytes | None]] = {
    "no config": {"config.json": None},
    "a config that is no JSON": {"config.json": b"{'a': 1}"},
    "a config of a list": {"config.json": b"[]"},
    "an empty config": {"config.json": b""},
    "a config of another model": {"config.json": b'{"model_type": "llama", "hidden_size": 64}'},
    "a config that is not text": {"config.json": bytes(range(256))},
    "no weights": {"model.safetensors": None},
    "empty weights": {"model.safetensors": b""},
    "weights of something else": {"model.safetensors": WEIGHTS},
    "weights that are text": {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"},
    "no tokenizer": {"tokenizer.json": None},
    "a tokenizer that is no JSON": {"tokenizer.json": b"{"},
}


def setting(key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{section}:\n  {name}: {value}\n" if section else f"\n{name}: {value}\n"


def wrong_types() -> Iterator[Case]:
    for doc in field_docs():
        for what, value in (("table", "{a: 1}"), ("list", "[[1]]")):
            place = f"{doc.key}[0]" if what == "list" and isinstance(doc.default, tuple) else doc.key
            says = f"recipe.yaml line 2: {place} is a {what}; allowed: "
            yield Case(f"{doc.key} is a {what}", says, recipe=setting(doc.key, value).encode())
        if isinstance(doc.default, int | float):
            says = f"recipe.yaml line 2: {doc.key} is 'many'; allowed: "
            yield Case(f"{doc.key} is a word", says, recipe=setting(doc.key, "many").encode())


def cases() -> Iterator[Case]:
    for number, (text, says) in enumerate(MISTAKES.items()):
        yield Case(f"recipe {number}", says, recipe=text.encode())
    for name, text in NO_TEXT.items():
        yield Case(f"recipe: {name}", "recipe.yaml: ", recipe=text)
    yield from wrong_types()
    for name, data in picture_files():
        yield Case(f"picture: {name}", "1 picture: bad.png (", {"set/bad.png": data, "set/bad.txt": CAPTION})
    for name, data in CAPTIONS.items():
        yield Case(f"caption: {name}", "1 picture: bad.png (", {"set/bad.png": GOOD, "set/bad.txt": data})
    for name, file, data in table_files():
        yield Case(f"table: {name}", file, {file: data}, data=file)
    for name, data in MASKS.items():
        yield Case(f"mask: {name}", "1 picture: good.png (", {"set/good.mask.png": data}, "masks: file")
    for name, data in LORAS.items():
        yield Case(f"LoRA: {name}", "up.safetensors", {"up.safetensors": data}, "upstream")
    for name, files in MODELS.items():
        yield Case(f"model: {name}", "model", {f"model/{file}": data for file, data in files.items()})
    yield Case("no data", "nowhere: there is no such folder", data="nowhere")
    yield Case("an empty folder", "empty: ", {"empty/a.txt": CAPTION}, data="empty")
    yield Case("a file for a folder", "good.txt: is a file, not a folder", data="set/good.txt")


CASES = list(cases())


def written(case: Case, root: Path, good_model: Path) -> Path:
    """The case's files. Returns the recipe."""
    for name, data in {"set/good.png": GOOD, "set/good.txt": CAPTION}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    model = root / "model" if any(name.startswith("model/") for name in case.files) else good_model
    if model != good_model:
        shutil.copytree(good_model, model)
    for name, data in case.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True) if data is None else (root / name).write_bytes(data)
    masks = "file" if case.settings == "masks: file" else "none"
    upstream = f"runtime: {{upstream_lora_path: {root / 'up.safetensors'}}}\n" if case.settings == "upstream" else ""
    text = f"model: {model}\ndata: {{data_dir: {root / case.data}, cap_max_pixels: 4096, masks: {masks}}}\n{upstream}"
    recipe = root / "recipe.yaml"
    recipe.write_bytes(text.encode() if case.recipe is None else case.recipe)
    return recipe


def contents(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_is_one_clear_line_and_nothing_is_written(case, tmp_path, models, capsys, monkeypatch):
    recipe = written(case, tmp_path, models["u1"])
    monkeypatch.chdir(tmp_path)  # where runs/ would be
    before = contents(tmp_path)
    assert main(["train", str(recipe), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert case.says in err
    assert "Traceback" not in err
    assert contents(tmp_path) == before


def test_a_good_one_is_trained(tmp_path, models, monkeypatch):
    """What the cases differ from would do."""
    recipe = written(Case("good", ""), tmp_path, models["u1"])
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(recipe), "--device", "cpu", "--steps", "1"]) == 0
    assert (tmp_path / "runs" / "my_run" / "my_run.safetensors").is_file()


def test_there_are_more_than_two_hundred_of_them():
    assert len({case.name for case in CASES}) == len(CASES) > 300
