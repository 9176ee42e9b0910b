import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from u1_core.errors import U1Error
from u1_core.weights.header import read_header


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_safetensors_library_wrote(tmp_path):
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int32)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    assert {name: (e.dtype, e.shape, e.n_bytes) for name, e in header.tensors.items()} == {
        "a": (torch.bfloat16, (2, 3), 12),
        "b": (torch.int32, (), 4),
    }
    assert header.size_problem == ""


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "header is damaged"),
        (b"[]", "header is damaged"),
        (b"[" * 100_000, "header is damaged"),
        (b'{"a": 1}', "'a' is not a tensor's entry"),
        (b'{"__metadata__": {"x": 1}}', "__metadata__ is not a table of texts"),
        ({"a": entry(dtype="F4")}, "'a' has the unknown dtype 'F4'"),
        ({"a": entry(shape=[2.0])}, r"'a' has shape \[2.0\]"),
        ({"a": entry(shape=[True, 2])}, r"'a' has shape \[True, 2\]"),
        ({"a": entry(shape=[-2])}, r"'a' has shape \[-2\]"),
        ({"a": entry(offsets=[0, 4])}, r"'a' of shape \[2\] and dtype F32 does not fill \[0, 4\]"),
        ({"a": entry(offsets=[8, 16])}, "'a' starts at byte 8 where 0 was due"),
        ({"a": entry(), "b": entry()}, "'b' starts at byte 0 where 8 was due"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), "'a' stands there twice"),
    ],
)
def test_damaged_headers_are_named(tmp_path, header, message):
    path = write_raw(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(U1Error, match=message) as raised:
        read_header(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_wrong_sizes_are_told_in_bytes(tmp_path):
    short = read_header(write_raw(tmp_path / "short.safetensors", {"a": entry()}, bytes(5)))
    assert (
        short.size_problem
        == f"short.safetensors is truncated: {short.file_bytes} of {short.file_bytes + 3} bytes are there"
    )
    long = read_header(write_raw(tmp_path / "long.safetensors", {"a": entry()}, bytes(9)))
    assert long.size_problem == "long.safetensors is 1 bytes longer than its header says"


@pytest.mark.parametrize("content", [b"", b"\x10\x00", (1 << 40).to_bytes(8, "little") + b"{}", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_file(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(U1Error, match="not a safetensors file, or cut off inside its header"):
        read_header(tmp_path / "x.safetensors")


def test_random_corruption_is_found_or_harmless(tmp_path):
    """A corrupt header either raises U1Error, or differs in names, which the check against the config will find."""
    save_file({f"layer.{i}.weight": torch.zeros(4, i + 1) for i in range(8)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    names = set(read_header(tmp_path / "x.safetensors").tensors)
    rng, found = random.Random(0), 0
    for _ in range(300):
        corrupt = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4, 32])):
            corrupt[rng.randrange(header_bytes)] = rng.randrange(256)
        (tmp_path / "y.safetensors").write_bytes(corrupt)
        try:
            header = read_header(tmp_path / "y.safetensors")
        except U1Error:
            found += 1
        else:
            assert set(header.tensors) != names or header.size_problem or same_json(corrupt, whole)
    assert found > 150


def same_json(corrupt: bytes, whole: bytes) -> bool:
    """Whether the corruption only changed blanks."""
    length = int.from_bytes(whole[:8], "little")
    return json.loads(bytes(corrupt[8 : 8 + length])) == json.loads(whole[8 : 8 + length])
