"""Our block formats against the gguf package's own, bit for bit."""

import itertools

import gguf
import numpy as np
import pytest
import torch

from u1_core.weights import dequantise
from u1_core.weights.dequantise import FORMATS, UNQUANTISED, dequantise_into

HALVES = {
    "Q8_0": (0,),
    "Q6_K": (208,),
    "Q5_K": (0, 2),
    "Q5_1": (0, 2),
    "Q5_0": (0,),
    "Q4_K": (0, 2),
    "Q4_1": (0, 2),
    "Q4_0": (0,),
    "Q3_K": (108,),
    "Q2_K": (80, 82),
}
"""Bytes of each block where a half-precision number starts."""


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """(count, bytes of a block): every bit random, but the halves, which are finite and of every size and sign."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, FORMATS[name].n_bytes), dtype=np.uint8)
    for start in HALVES.get(name, ()):
        halves = random.standard_normal(count) * 10.0 ** random.integers(-6, 4, count)
        blocks[:, start : start + 2] = halves.astype(np.float16).view(np.uint8).reshape(count, 2)
    return blocks


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: 0.0 and -0.0 differ, and a NaN equals itself."""
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_packages_own_to_the_bit(name, dtype):
    """And rounded once: as torch rounds the package's fp32 numbers."""
    blocks = random_blocks(name, 4096)
    if name in UNQUANTISED:
        blocks = blocks[~np.isnan(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])).any(axis=1)]
    theirs = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).copy()).to(dtype)
    ours = torch.empty(theirs.shape, dtype=dtype)
    dequantise_into(ours, torch.from_numpy(blocks).flatten(), name)
    assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize("name", FORMATS)
def test_block_sizes_are_the_packages(name):
    assert (FORMATS[name].numbers, FORMATS[name].n_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def test_chunks_join_without_a_seam(monkeypatch):
    """70 blocks in chunks of 32, the last one short, give what one chunk gives."""
    raw = torch.from_numpy(random_blocks("Q5_K", 70)).flatten()
    whole, pieces = torch.empty(35, 512), torch.empty(35, 512)
    dequantise_into(whole, raw, "Q5_K")
    monkeypatch.setattr(dequantise, "CHUNK_NUMBERS", 32 * 256)
    dequantise_into(pieces, raw, "Q5_K")
    assert torch.equal(bits(whole), bits(pieces))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a card's arithmetic with the CPU's")
def test_a_card_gives_the_same_bits():
    """Blocks copied to a card and taken apart there, into fp32 and bf16."""
    for name, dtype in itertools.product(FORMATS, (torch.float32, torch.bfloat16)):
        raw = torch.from_numpy(random_blocks(name, 4096)).flatten()
        here = torch.empty(4096 * FORMATS[name].numbers, dtype=dtype)
        there = here.cuda()
        dequantise_into(here, raw, name)
        dequantise_into(there, raw, name)
        assert torch.equal(here.nan_to_num(), there.cpu().nan_to_num()), (name, dtype)
