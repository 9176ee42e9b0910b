"""Random models in .gguf files: wide enough for blocks of 256, with numbers of a size that a layer can bear."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from u1_core.lora.adapter import Adapter
from u1_core.model.config import U1Config, tensor_shapes
from u1_core.weights.dequantise import FORMATS
from u1_core.weights.random_model import random_tensors
from u1_core.weights.tiny import tiny_config, write_tiny_tokenizer
from u1_core.weights.write import write_safetensors

WIDTH = 256
HALVES = {
    "Q6_K": {208: 4.5e-5},
    "Q5_K": {0: 1.4e-4, 2: 15.5 * 1.4e-4},
    "Q4_K": {0: 3e-4, 2: 7.5 * 3e-4},
    "Q3_K": {108: 1.5e-3},
    "Q2_K": {80: 5e-3, 82: 1.5 * 5e-3},
}
"""Where a K block's own scales stand, and which make its numbers zero in mean and 1/16 in spread."""
RECIPES = {
    "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q5_K_S": ("Q5_K", "Q5_K"),
    "Q3_K_M": ("Q3_K", "Q4_K"),
    "Q2_K": ("Q2_K", "Q3_K"),
    "Q6_K": ("Q6_K", "Q6_K"),
    "Q8_0": ("Q8_0", "Q8_0"),
    "Q5_1": ("Q5_1", "Q5_0"),
    "Q4_0": ("Q4_0", "Q4_1"),
    "BF16": ("BF16", "BF16"),
    "F16": ("F16", "F16"),
}
"""Kinds of files: the type of most linear maps, and of v_proj, down_proj and lm_head."""


@dataclass(frozen=True)
class GgufModel:
    """A model's .gguf file in a folder of its own, and what the gguf package makes of each tensor."""

    path: Path
    config: U1Config
    numbers: Mapping[str, np.ndarray]

    def write_dequantised(self, folder: Path) -> Path:
        """The same model as a snapshot folder of fp32 tensors."""
        for file in self.path.parent.iterdir():
            if file.suffix == ".json":
                folder.mkdir(exist_ok=True)
                (folder / file.name).write_bytes(file.read_bytes())
        tensors = {name: torch.from_numpy(np.array(numbers)) for name, numbers in self.numbers.items()}
        write_safetensors(folder / "model.safetensors", tensors)
        return folder


def mid_size_config(kind: str) -> dict[str, Any]:
    """The tiny config of that kind, 256 wide in every place where blocks lie."""
    config = tiny_config(kind)
    config["llm_config"] |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": 64}
    config["llm_config"] |= {"moe_intermediate_size": WIDTH, "gen_moe_intermediate_size": WIDTH}
    config["vision_config"] |= {"hidden_size": 64, "llm_hidden_size": WIDTH}
    return config


def type_of(recipe: str, name: str, shape: tuple[int, ...]) -> str:
    """As the tools for quantised models choose: norms, biases and convolutions stay as they are, a few get more."""
    common, better = RECIPES[recipe]
    if len(shape) != 2 or shape[-1] % FORMATS[common].numbers:
        return "F32"
    if "embed_tokens" in name:
        return "F16"
    return better if any(part in name for part in ("v_proj", "down_proj", "lm_head")) else common


def encode(name: str, tensor: np.ndarray, kind: str) -> np.ndarray:
    """`tensor` in blocks; random blocks of its shape for the formats that the package cannot write."""
    if kind not in HALVES:
        return gguf.quants.quantize(tensor, gguf.GGMLQuantizationType[kind])
    form, random = FORMATS[kind], np.random.default_rng(len(name))
    blocks = random.integers(0, 256, (tensor.size // form.numbers, form.n_bytes), dtype=np.uint8)
    for start, half in HALVES[kind].items():
        blocks[:, start : start + 2] = np.array([half], np.float16).view(np.uint8)
    return blocks.reshape(*tensor.shape[:-1], -1)


@pytest.fixture(scope="session")
def gguf_model(tmp_path_factory) -> Callable[..., GgufModel]:
    """(recipe="Q4_K_M", kind="u1", prefix="", rearranged=()) -> a model of random numbers, written anew.

    `rearranged` names tensors that are stored in rows of 256, with their own shape in the metadata.
    """
    counter = itertools.count()

    def write(
        recipe: str = "Q4_K_M", kind: str = "u1", prefix: str = "", rearranged: tuple[str, ...] = ()
    ) -> GgufModel:
        raw = mid_size_config(kind)
        config = replace(U1Config.from_dict(raw), head_width=WIDTH)
        folder = tmp_path_factory.mktemp(f"gguf{next(counter)}")
        (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
        write_tiny_tokenizer(folder)
        path, shapes, numbers = folder / f"u1-{recipe}.gguf", tensor_shapes(config), {}
        writer = gguf.GGUFWriter(path, "sensenova_u1")
        for name, tensor in random_tensors(config, dtype=torch.float32):
            rows = tensor.numpy()
            if name in rearranged:
                writer.add_array(f"comfy.gguf.orig_shape.{prefix}{name}", list(rows.shape))
                rows = rows.reshape(-1, 256)
            format_name = type_of(recipe, name, rows.shape)
            blocks, qtype = encode(name, rows, format_name), gguf.GGMLQuantizationType[format_name]
            writer.add_tensor(prefix + name, blocks, raw_dtype=qtype)
            numbers[name] = gguf.quants.dequantize(blocks, qtype).reshape(shapes[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return GgufModel(path, config, numbers)

    return write


@pytest.fixture
def lora(random_modules) -> Callable[[U1Config], Adapter]:
    """(config) -> a LoRA on every linear map of the generation tower and the head, strong enough to be seen."""

    def wanted(path: str) -> bool:
        return "_mot_gen" in path or ".fm_head." in path

    return lambda config: Adapter(random_modules(config, wanted, rank=4, alpha=0.02), strength=0.7)
