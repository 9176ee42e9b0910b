"""The block formats of GGUF, taken apart with torch on whatever device the blocks are.

Every number is the one that `gguf.quants.dequantize` gives, to the last bit: the same products and sums in fp32, each
rounded by itself. A compiler would fuse a product and a sum into one rounding, so these functions are not compiled.
Formats: ggml-common.h of https://github.com/ggml-org/llama.cpp. Quantised numbers are called q below, scales d, and
what is taken off or added m.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 24
"""Numbers dequantised at a time: what is needed meanwhile, about 9 bytes a number, stays small beside a layer."""


@dataclass(frozen=True, slots=True)
class Format:
    """One type of block: `numbers` numbers in `n_bytes` bytes, and how (n, n_bytes) become (n, numbers)."""

    numbers: int
    n_bytes: int
    decode: Callable[[Tensor], Tensor]


def dequantise_into(place: Tensor, raw: Tensor, format_name: str) -> None:
    """Fill `place`, contiguous, with the numbers of the blocks in `raw` (uint8, flat), each rounded to its dtype once.

    `raw` may be on another device: blocks are copied over as they are and taken apart where `place` is.
    """
    form = FORMATS[format_name]
    blocks, numbers = raw.view(-1, form.n_bytes), place.view(-1, form.numbers)
    step = CHUNK_NUMBERS // form.numbers
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step].to(place.device, non_blocking=True)
        numbers[start : start + step].copy_(form.decode(chunk))


def _fp16(blocks: Tensor, start: int) -> Tensor:
    """The half-precision number at byte `start` of each block: (n, 1) in fp32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int, run: int) -> Tensor:
    """Numbers of `bits` bits: (n, bytes) -> (n, bytes * 8 / bits).

    Of every `run` bytes come first the lowest bits of each, then the next higher ones of each, and so on.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    return (packed.reshape(len(packed), -1, 1, run) >> shifts).bitwise_and_((1 << bits) - 1).flatten(1)


def _five_bits(low: Tensor, high: Tensor) -> Tensor:
    return high.bitwise_left_shift_(4).bitwise_or_(low)


def _signed(q: Tensor, offset: int) -> Tensor:
    """Numbers stored with `offset` added, in fp32."""
    return q.view(torch.int8).sub_(offset).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _signed(_fields(blocks[:, 2:], 4, 16), 8).mul_(_fp16(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _fields(blocks[:, 4:], 4, 16).float().mul_(_fp16(blocks, 0)).add_(_fp16(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    q = _five_bits(_fields(blocks[:, 6:], 4, 16), _fields(blocks[:, 2:6], 1, 1))
    return _signed(q, 16).mul_(_fp16(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    q = _five_bits(_fields(blocks[:, 8:], 4, 16), _fields(blocks[:, 4:8], 1, 1))
    return q.float().mul_(_fp16(blocks, 0)).add_(_fp16(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_fp16(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    """16 groups of 16 numbers; a byte holds a group's scale (low) and its minimum (high)."""
    scales = blocks[:, :16]
    d, m = _fp16(blocks, 80) * (scales & 15).float(), _fp16(blocks, 82) * (scales >> 4).float()
    return _scaled(_fields(blocks[:, 16:80], 2, 32).float(), d, m)


def _q3_k(blocks: Tensor) -> Tensor:
    """16 groups of 16 numbers; the mask's bit is each number's highest; scales are 6 bits, 4 and 2 of them apart."""
    low, high = _fields(blocks[:, 96:104], 4, 8), _fields(blocks[:, 104:108], 2, 4)
    d = _fp16(blocks, 108) * _signed(high.bitwise_left_shift_(4).bitwise_or_(low), 32)
    top = _fields(blocks[:, :32], 1, 32).bitwise_left_shift_(2)
    return _scaled(_signed(_fields(blocks[:, 32:96], 2, 32).bitwise_or_(top), 4), d)


def _q4_k(blocks: Tensor) -> Tensor:
    return _scaled(_fields(blocks[:, 16:], 4, 32).float(), *_scales_and_minima(blocks))


def _q5_k(blocks: Tensor) -> Tensor:
    q = _five_bits(_fields(blocks[:, 48:], 4, 32), _fields(blocks[:, 16:48], 1, 32))
    return _scaled(q.float(), *_scales_and_minima(blocks))


def _q6_k(blocks: Tensor) -> Tensor:
    """16 groups of 16 numbers; a number's lower 4 bits and upper 2 lie apart."""
    low, high = _fields(blocks[:, :128], 4, 64), _fields(blocks[:, 128:192], 2, 32)
    d = _fp16(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return _scaled(_signed(_five_bits(low, high), 32), d)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes, times the block's own: (n, 8) each.

    The first four of each are the low 6 bits of bytes 0-3 and 4-7. Of the last four, the low 4 bits are the halves of
    bytes 8-11, and the high 2 bits are those left over in the bytes before.
    """
    scales, minima, halves = blocks[:, 4:16].split(4, dim=1)
    d = torch.cat([scales & 63, (halves & 15) | ((scales >> 2) & 48)], dim=1)
    m = torch.cat([minima & 63, (halves >> 4) | ((minima >> 2) & 48)], dim=1)
    return _fp16(blocks, 0) * d.float(), _fp16(blocks, 2) * m.float()


def _scaled(q: Tensor, d: Tensor, m: Tensor | None = None) -> Tensor:
    """d * q - m, where d and m (n, groups) stand for equal runs of q (n, 256). In q's place."""
    groups = q.unflatten(1, (d.shape[1], -1)).mul_(d[..., None])
    if m is not None:
        groups.sub_(m[..., None])
    return q


FORMATS = {
    "F32": Format(1, 4, lambda blocks: blocks.view(torch.float32)),
    "F16": Format(1, 2, lambda blocks: blocks.view(torch.float16)),
    "BF16": Format(1, 2, lambda blocks: blocks.view(torch.bfloat16)),
    "Q8_0": Format(32, 34, _q8_0),
    "Q6_K": Format(256, 210, _q6_k),
    "Q5_K": Format(256, 176, _q5_k),
    "Q5_1": Format(32, 24, _q5_1),
    "Q5_0": Format(32, 22, _q5_0),
    "Q4_K": Format(256, 144, _q4_k),
    "Q4_1": Format(32, 20, _q4_1),
    "Q4_0": Format(32, 18, _q4_0),
    "Q3_K": Format(256, 110, _q3_k),
    "Q2_K": Format(256, 84, _q2_k),
}
"""Types of tensors by GGUF's names for them, widest first. A file called Q4_K_M or Q5_K_S mixes several."""

UNQUANTISED = ("F32", "F16", "BF16")
