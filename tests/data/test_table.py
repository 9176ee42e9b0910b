import builtins
import gc
import threading
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from u1_core.data import table as module
from u1_core.data.folder import Sample
from u1_core.data.table import open_table
from u1_core.errors import U1Error


def as_arrow(path, target, stream=False, **options):
    rows = pyarrow.parquet.read_table(path)
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(target), "wb") as file, opened(file, rows.schema, **options) as writer:
        for batch in rows.to_batches(max_chunksize=4):
            writer.write_batch(batch)
    return target


def everything(table):
    return [(table.sample(row), table.value(row, "image")) for row in range(len(table))]


@pytest.mark.parametrize("group", [1, 4, 10])
def test_rows_of_any_grouping(make, tmp_path, group):
    path = make.table(tmp_path / "t.parquet", 10, group)
    table = open_table(path)
    assert len(table) == 10
    assert table.columns == ["sample_id", "caption", "think", "image"]
    assert table.sample(3) == Sample("s3", path, "caption number 3", "thought 3")
    assert table.sample(4).think is None
    assert [table.value(row, "image") for row in (9, 0, 5)] == [make.png(make.picture(i)) for i in (9, 0, 5)]


@pytest.mark.parametrize("options", [{}, {"options": pyarrow.ipc.IpcWriteOptions(compression="zstd")}])
@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams_hold_the_same(make, tmp_path, stream, options):
    parquet = make.table(tmp_path / "t.parquet", 10)
    path = as_arrow(parquet, tmp_path / "t.arrow", stream, **options)
    ours, theirs = everything(open_table(path)), everything(open_table(parquet))
    assert [(s.id, s.caption, s.think, image) for s, image in ours] == [
        (s.id, s.caption, s.think, image) for s, image in theirs
    ]


def test_feather_and_other_types_of_the_same_columns(make, tmp_path):
    rows = pyarrow.table(
        {
            "sample_id": pyarrow.array([7, 8]),
            "caption": pyarrow.array(["one", "two"]).dictionary_encode(),
            "image": pyarrow.array([b"x", b"y"], pyarrow.large_binary()),
        }
    )
    pyarrow.feather.write_feather(rows, str(tmp_path / "t.feather"))
    table = open_table(tmp_path / "t.feather")
    assert [table.sample(i).id for i in (0, 1)] == ["7", "8"]
    assert table.sample(1).caption == "two"
    assert table.value(1, "image") == b"y"


def test_pictures_as_structs_of_bytes_and_path(make, tmp_path):
    cells = [{"bytes": b"first", "path": "a.png"}, {"bytes": b"second", "path": None}]
    table = open_table(make.table(tmp_path / "t.parquet", 2, 1, image=cells))
    assert [table.value(i, "image") for i in (0, 1)] == [b"first", b"second"]


def test_rows_without_ids_are_called_by_number(make, tmp_path):
    table = open_table(make.table(tmp_path / "t.parquet", 3, 2, sample_id=None, think=None))
    assert [table.sample(i).id for i in range(3)] == ["row 0", "row 1", "row 2"]
    assert table.sample(1).think is None


def test_a_caption_may_bring_its_reasoning_with_it(make, tmp_path):
    table = open_table(make.table(tmp_path / "t.parquet", 1, caption=["a cat\n---think---\nwhy"], think=[None]))
    assert (table.sample(0).caption, table.sample(0).think) == ("a cat", "why")


def test_only_the_groups_in_use_are_held(make, tmp_path, monkeypatch):
    path = make.table(tmp_path / "t.parquet", 60, 2, think=None, image=[b"x" * 1000] * 60)
    monkeypatch.setattr(module, "CACHE_BYTES", 10_000)
    table, reads = open_table(path), []
    read = table.groups.read
    table.groups.read = lambda group, columns: reads.append((group, "image" in columns)) or read(group, columns)
    for row in range(60):
        table.value(row, "image")
    assert 4000 < table.held_bytes <= 10_000
    assert reads == [(group, True) for group in range(30)]
    table.value(59, "image")
    table.value(0, "image")
    assert reads[30:] == [(0, True)]
    table.value(0, "caption")
    assert reads[31:] == [(0, False)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_large_groups_are_copied_in_pieces(make, tmp_path, monkeypatch, suffix):
    path = make.table(tmp_path / "t.parquet", 100)
    expected = everything(open_table(path))
    if suffix == "arrow":
        zstd = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        path = as_arrow(path, tmp_path / "t.arrow", options=zstd)
    monkeypatch.setattr(module, "LARGEST_GROUP_BYTES", 100)
    table = open_table(path)
    assert isinstance(table.groups, module._CopiedGroups)
    assert max(table.groups.rows) <= module.COPIED_ROWS
    assert [image for _, image in everything(table)] == [image for _, image in expected]
    assert [sample.caption for sample, _ in everything(table)] == [sample.caption for sample, _ in expected]
    copy = Path(table.groups._folder.name)
    assert [file.name for file in copy.iterdir()] == ["rows.arrow"]
    del table
    gc.collect()
    assert not copy.exists()


def test_no_room_for_the_copy(make, tmp_path, monkeypatch):
    path = make.table(tmp_path / "t.parquet", 10)
    monkeypatch.setattr(module, "LARGEST_GROUP_BYTES", 100)
    monkeypatch.setattr(pyarrow, "OSFile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(U1Error, match=r"its groups of rows are too large .* \(No space left on device\); rewrite"):
        open_table(path)


def test_many_threads_read_the_same_rows(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHE_BYTES", 2000)
    table, seen = open_table(make.table(tmp_path / "t.parquet", 24, 3)), {}

    def read(start):
        for row in range(start, 24, 4):
            seen[row] = table.value(row, "image")

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {row: make.png(make.picture(row)) for row in range(24)}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": None, "captoin": ["x"]}, r"has no column 'caption'; did you mean 'captoin'\? \(its columns: sam"),
        ({"image": None}, r"has no column 'image' \(its columns: sample_id, caption, think\)"),
        ({"caption": [1]}, "its column 'caption' is to hold text, but it holds int64"),
        ({"image": ["a.png"]}, "its column 'image' is to hold bytes of picture files, but it holds string"),
        ({"width": ["wide"]}, "its column 'width' is to hold whole numbers, but it holds string"),
    ],
)
def test_columns_that_will_not_do(make, tmp_path, columns, message):
    with pytest.raises(U1Error, match=message):
        open_table(make.table(tmp_path / "t.parquet", 1, **columns))


def test_a_table_without_rows(make, tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"caption": pyarrow.array([], "string"), "image": pyarrow.array([], "binary")}),
        tmp_path / "t.parquet",
    )
    with pytest.raises(U1Error, match=r"t\.parquet: has no rows"):
        open_table(tmp_path / "t.parquet")


def test_without_pyarrow(make, tmp_path, monkeypatch):
    path = make.table(tmp_path / "t.parquet", 1)
    importing = builtins.__import__

    def refuse(name, *args):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(U1Error, match=r"t\.parquet: parquet and arrow files take pyarrow, .* pip install pyarrow"):
        open_table(path)


def test_captions_that_are_numbered_anew_in_each_group(make, tmp_path, monkeypatch):
    """As dictionaries, of which an Arrow file has one for each column."""
    path, captions = tmp_path / "t.parquet", [f"caption {i % 3} of {i // 10}" for i in range(40)]
    table = pyarrow.table({"caption": captions, "image": [make.png(make.picture(i)) for i in range(40)]})
    table = table.set_column(0, "caption", table["caption"].dictionary_encode())
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    monkeypatch.setattr(module, "LARGEST_GROUP_BYTES", 100)
    assert [sample.caption for sample, _ in everything(open_table(path))] == captions
