import pyarrow.parquet
import pytest
from PIL import Image

from u1_core.data import pack as module
from u1_core.data.dataset import open_dataset
from u1_core.data.pack import pack
from u1_core.errors import U1Error


def test_what_is_packed_is_what_was_there(make, style):
    make.put(style, "a.png", "the first\n---think---\nbecause", make.picture(0, 80, 60))
    make.put(style, "a.mask.png", None, Image.new("L", (80, 60), 255))
    make.put(style, "3_more/g.jpg", "the last", make.picture(6, 80, 80))
    folder = open_dataset(style)
    out = style.parent / "style.parquet"
    seen = []
    done = pack(folder, out, on_progress=lambda *progress: seen.append(progress))
    assert (done.path, done.rows, done.n_bytes, done.left_out) == (out, 7, out.stat().st_size, {})
    assert seen[-1] == (7, 7)
    table = open_dataset(out)
    assert list(table.turns) == list(folder.turns)
    for number, (ours, theirs) in enumerate(zip(table, folder, strict=True)):
        assert (ours.id, ours.caption, ours.think) == (theirs.id, theirs.caption, theirs.think)
        assert table.picture(number) == folder.picture(number).read_bytes()
        assert table.size(number) == folder.size(number)
        assert (table.mask(number) is None) == (folder.mask(number) is None)
    assert table.table.value(1, "width") == 80


def test_groups_are_small(make, style, monkeypatch):
    folder = open_dataset(style)
    monkeypatch.setattr(module, "GROUP_ROWS", 4)
    pack(folder, style.parent / "rows.parquet")
    assert open_dataset(style.parent / "rows.parquet").table.groups.rows == [4, 2]
    monkeypatch.setattr(module, "GROUP_BYTES", 1)
    pack(folder, style.parent / "bytes.parquet")
    assert open_dataset(style.parent / "bytes.parquet").table.groups.rows == [1] * 6


def test_repeats_are_written_where_there_are_any(make, style):
    pack(open_dataset(style), style.parent / "once.parquet")
    assert "repeats" not in open_dataset(style.parent / "once.parquet").table.columns
    make.put(style, "4_x/h.png", "a ship in a bottle", make.picture(8, 80, 80))
    pack(open_dataset(style), style.parent / "often.parquet")
    packed = open_dataset(style.parent / "often.parquet")
    assert list(packed.turns) == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert packed[0].repeats == 4


def test_a_table_is_packed_anew(make, style):
    pack(open_dataset(style), style.parent / "a.parquet")
    pack(open_dataset(style.parent / "a.parquet"), style.parent / "b.parquet")
    one, other = (pyarrow.parquet.read_table(style.parent / f"{name}.parquet") for name in "ab")
    assert one.equals(other)


def test_what_cannot_be_trained_on_is_named_and_nothing_written(make, style):
    whole = make.png(make.picture(9, 80, 80))
    make.put(style, "cut.png", "a picture cut short", whole[: len(whole) // 2])
    make.put(style, "x.png", None, whole)
    out = style.parent / "style.parquet"
    with pytest.raises(U1Error, match=r"cannot train on 2 pictures: cut\.png \(.*cut short.*, x\.png \(has no caption"):
        pack(open_dataset(style), out)
    assert [path.name for path in style.parent.iterdir()] == ["style"]
    done = pack(open_dataset(style), out, leave_out_bad=True)
    assert (done.rows, sorted(done.left_out)) == (6, ["cut.png", "x.png"])
    assert [sample.id for sample in open_dataset(out)] == [f"{name}.png" for name in "abcdef"]


def test_nothing_is_overwritten_and_the_name_tells_the_format(style):
    taken = style.parent / "style.parquet"
    taken.write_bytes(b"mine")
    with pytest.raises(U1Error, match=r"style\.parquet: is already there"):
        pack(open_dataset(style), taken)
    assert taken.read_bytes() == b"mine"
    with pytest.raises(U1Error, match=r"style\.zip: the file that is written is a \.parquet"):
        pack(open_dataset(style), style.parent / "style.zip")


def test_a_full_disk(style, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", refuse)
    with pytest.raises(U1Error, match=r"style\.parquet: cannot be written \(No space left on device\)"):
        pack(open_dataset(style), style.parent / "style.parquet")
    assert [path.name for path in style.parent.iterdir()] == ["style"]


def test_nothing_left_to_pack(make, tmp_path):
    make.put(tmp_path / "x", "a.png", "never a picture", b"no")
    with pytest.raises(U1Error, match="no sample is left to pack"):
        pack(open_dataset(tmp_path / "x"), tmp_path / "x.parquet", leave_out_bad=True)
    assert not (tmp_path / "x.parquet").exists()
