import os
import random

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.model.views import KVChunk
from u1_core.prefix.files import PrefixFolder, default_folder

SHAPE, DTYPE = (3, 4, 2, 8), torch.bfloat16


def chunks(count: int, seed: int = 0) -> list[KVChunk]:
    generator = torch.Generator().manual_seed(seed)
    return [KVChunk(*(torch.randn(SHAPE, generator=generator).to(DTYPE) for _ in range(2))) for _ in range(count)]


def same(one: KVChunk, other: KVChunk) -> bool:
    return torch.equal(one.k, other.k) and torch.equal(one.v, other.v)


def test_each_is_read_back_bit_for_bit(tmp_path):
    folder, written = PrefixFolder(tmp_path / "new", 10**9), chunks(3)
    folder.write("a", written)
    file = folder.open("a")
    assert all(same(file.read(number, SHAPE, DTYPE), written[number]) for number in (2, 0, 1))
    assert file.read(3, SHAPE, DTYPE) is None
    assert folder.open("b") is None
    folder.write("a", written[::-1])
    assert same(folder.open("a").read(0, SHAPE, DTYPE), written[2])


@pytest.mark.parametrize(("shape", "dtype"), [((3, 4, 8, 2), DTYPE), ((3, 5, 2, 8), DTYPE), (SHAPE, torch.float16)])
def test_what_is_not_what_it_should_be_is_none(tmp_path, shape, dtype):
    folder = PrefixFolder(tmp_path, 10**9)
    folder.write("a", chunks(1))
    assert folder.open("a").read(0, shape, dtype) is None


def test_no_bit_of_a_file_is_trusted(tmp_path):
    """Wherever a byte is changed, what is read is what was written or nothing; so too where the file is cut off."""
    folder, written = PrefixFolder(tmp_path, 10**9), chunks(2)
    folder.write("a", written)
    (path,) = tmp_path.iterdir()
    whole, choose, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        place = choose.randrange(len(whole))
        if choose.random() < 0.8:
            damaged = whole[:place] + bytes([whole[place] ^ 1 << choose.randrange(8)]) + whole[place + 1 :]
        else:
            damaged = whole[:place]
        path.write_bytes(damaged)
        file = folder.open("a")
        found = [file and file.read(number, SHAPE, DTYPE) for number in range(2)]
        assert all(one is None or same(one, other) for one, other in zip(found, written, strict=True))
        refused += None in found
    assert refused > 290  # a byte between two numbers of the header may be a blank


def test_a_file_that_goes_while_it_is_open(tmp_path):
    folder = PrefixFolder(tmp_path, 10**9)
    folder.write("a", chunks(1))
    file = folder.open("a")
    file.header.path.unlink()
    assert file.read(0, SHAPE, DTYPE) is None


def test_what_was_used_longest_ago_is_deleted(tmp_path):
    folder = PrefixFolder(tmp_path, 10**9)
    for age, name in enumerate("abcd"):
        folder.write(name, chunks(1))
        os.utime(tmp_path / f"{name}.safetensors", ns=(age, age))
    size = (tmp_path / "a.safetensors").stat().st_size
    folder.open("a")
    folder.budget_bytes = 3 * size
    folder.write("e", chunks(1))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "d", "e"]
    folder.budget_bytes = 0
    folder.write("f", chunks(1))
    assert [path.stem for path in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_takes_nothing_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(U1Error, match=r"file[/\\]a\.safetensors: cannot be written"):
        PrefixFolder(tmp_path / "file", 10**9).write("a", chunks(1))


def test_they_are_kept_among_what_can_be_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("U1_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "prefixes"
