import errno

import pyarrow.parquet
import pytest

from u1_core.data.dataset import FolderDataset, open_dataset
from u1_core.data.shards import shards_in
from u1_core.errors import U1Error


def shard(make, folder, name, first, rows, group, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + rows)
    return make.table(
        folder / name,
        rows,
        group,
        **{"sample_id": [f"s{i}" for i in numbers], "caption": [f"row {i}" for i in numbers], "think": None} | columns,
    )


def test_the_files_of_a_folder_are_one_table(make, tmp_path):
    shard(make, tmp_path / "set" / "more", "c.parquet", 7, 2, 1)
    shard(make, tmp_path / "set", "b.parquet", 3, 4, 3)
    shard(make, tmp_path / "set", "a.parquet", 0, 3, 2)
    shard(make, tmp_path / "set" / ".hidden", "d.parquet", 0, 1, 1)
    assert [path.name for path in shards_in(tmp_path / "set")] == ["a.parquet", "b.parquet", "c.parquet"]
    dataset = open_dataset(tmp_path / "set")
    assert [(sample.id, sample.caption) for sample in dataset] == [(f"s{i}", f"row {i}") for i in range(9)]
    assert dataset.picture(4) == make.png(make.picture(1))
    assert dataset.place(4) == f"{tmp_path / 'set'} row 4"
    assert len(open_dataset(tmp_path / "set", 5)) == 5


def test_repeats_run_through_them(make, tmp_path):
    shard(make, tmp_path / "set", "a.parquet", 0, 2, 1, repeats=[1, 2])
    shard(make, tmp_path / "set", "b.parquet", 2, 1, 1, repeats=[3])
    assert list(open_dataset(tmp_path / "set").turns) == [0, 1, 1, 2, 2, 2]


def test_a_folder_with_pictures_is_a_folder_of_pictures(make, style):
    shard(make, style, "old.parquet", 0, 1, 1)
    assert isinstance(open_dataset(style), FolderDataset)


def test_files_that_do_not_go_together(make, tmp_path):
    shard(make, tmp_path / "set", "a.parquet", 0, 1, 1)
    shard(make, tmp_path / "set", "b.parquet", 1, 1, 1, width=[40])
    with pytest.raises(U1Error, match=r"b\.parquet: has the columns sample_id, caption, image, width, but a\.parquet"):
        open_dataset(tmp_path / "set")
    (tmp_path / "set" / "b.parquet").write_bytes(b"no table")
    with pytest.raises(U1Error, match=r"b\.parquet: is no \.parquet file that can be read"):
        open_dataset(tmp_path / "set")


def test_a_hidden_picture_makes_no_folder_of_pictures(make, tmp_path):
    shard(make, tmp_path / "set", "a.parquet", 0, 2, 1)
    make.put(tmp_path / "set", ".cache/thumbnail.png", None, make.picture(0))
    assert len(open_dataset(tmp_path / "set")) == 2


def test_files_beyond_what_the_system_opens(make, tmp_path, monkeypatch):
    shard(make, tmp_path / "set", "a.parquet", 0, 2, 1)
    refuse = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", lambda *_, **__: (_ for _ in ()).throw(refuse))
    with pytest.raises(U1Error, match=r"a\.parquet: the system lets no more files be opened; allow more \(ulimit -n\)"):
        open_dataset(tmp_path / "set")
