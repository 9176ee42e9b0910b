import hashlib
import json
import os

import pytest

from u1_core.errors import U1Error
from u1_core.train import file_hashes
from u1_core.train.file_hashes import FileHashes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights" * 300_000)  # more than one block
    return path


def test_it_is_the_sha256(file, tmp_path):
    hashes = FileHashes(tmp_path / "memory.json")
    assert hashes.at_hand(file) is None
    assert hashes.of(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_large_files_are_read_once_and_again_when_they_change(file, tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "LARGE_BYTES", 2_000_000)
    small = tmp_path / "b.png"
    small.write_bytes(b"pixels")
    hashes = FileHashes(tmp_path / "memory.json")
    digest = hashes.of(file)
    hashes.of(small)
    hashes.save()
    assert list(json.loads((tmp_path / "memory.json").read_text())) == [str(file.resolve())]
    later = FileHashes(tmp_path / "memory.json")
    assert later.at_hand(file) == digest
    os.utime(file, ns=(0, 0))
    assert later.at_hand(file) is None


def test_the_hubs_cache_names_contents_by_their_hash(tmp_path):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not read")
    try:
        (tmp_path / "model.safetensors").symlink_to(blob)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert FileHashes(tmp_path / "memory.json").of(tmp_path / "model.safetensors") == "ab" * 32


@pytest.mark.parametrize("memory", ["", "{", "[]", '{"a": 1}', '{"a": [1, "b"]}', '{"a": ["x", 2, "c"]}'])
def test_a_broken_memory_is_none(file, tmp_path, memory):
    (tmp_path / "memory.json").write_text(memory)
    assert FileHashes(tmp_path / "memory.json").at_hand(file) is None


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(U1Error, match=r"gone\.png: cannot be read \(No such file"):
        FileHashes(tmp_path / "memory.json").of(tmp_path / "gone.png")
