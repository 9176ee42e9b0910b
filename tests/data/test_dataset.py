import pytest

from u1_core.data.dataset import FolderDataset, TableDataset, open_dataset
from u1_core.data.framing import Framing
from u1_core.errors import U1Error


def test_a_folder_named_n_something_repeats_its_pictures(make, tmp_path):
    for name in ("a.png", "3_ink/b.png", "3_ink/inner/c.png", "2_outer/4_inner/d.png", "0_none/e.png", "12/f.png"):
        make.put(tmp_path, name, "a caption", make.picture(0))
    dataset = open_dataset(tmp_path)
    repeats = {sample.id: sample.repeats for sample in dataset}
    assert repeats == {
        "a.png": 1,
        "3_ink/b.png": 3,
        "3_ink/inner/c.png": 3,
        "2_outer/4_inner/d.png": 4,
        "0_none/e.png": 1,
        "12/f.png": 1,
    }
    assert len(dataset.turns) == 13
    assert sorted(dataset.turns) == list(dataset.turns)
    assert dataset.turns.count(list(repeats).index("2_outer/4_inner/d.png")) == 4


def test_masks_belong_to_their_pictures_and_are_none_themselves(make, tmp_path):
    make.put(tmp_path, "a.jpg", "a caption", make.picture(0))
    make.put(tmp_path, "a.mask.png", None, make.picture(1))
    make.put(tmp_path, "b.png", "a caption", make.picture(0))
    dataset = open_dataset(tmp_path)
    assert [sample.id for sample in dataset] == ["a.jpg", "b.png"]
    assert [dataset.mask(0), dataset.mask(1)] == [tmp_path / "a.mask.png", None]
    assert dataset.problems == {}


def test_what_a_set_is_kept_in_makes_no_difference(make, tmp_path):
    columns = {"mask": [b"m", None], "repeats": [None, 3], "width": [640, None], "height": [480, None]}
    dataset = open_dataset(make.table(tmp_path / "t.parquet", 2, 1, **columns))
    assert isinstance(dataset, TableDataset)
    assert [sample.caption for sample in dataset] == ["caption number 0", "caption number 1"]
    assert (dataset.picture(1), dataset.mask(0), dataset.mask(1)) == (make.png(make.picture(1)), b"m", None)
    assert list(dataset.turns) == [0, 1, 1, 1]
    assert dataset[1].repeats == 3
    assert dataset.size(0) == (640, 480)  # as the table says: the picture itself is not looked at
    assert dataset.size(1) == (40, 30)
    assert dataset.place(1).endswith("t.parquet row 1")
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize(("limit", "count"), [(None, 5), (2, 2), (9, 5)])
def test_only_the_first_so_many(make, tmp_path, limit, count):
    assert len(open_dataset(make.table(tmp_path / "t.parquet", 5, 2), limit)) == count
    for i in range(5):
        make.put(tmp_path / "f", f"{i}.png", "a caption", make.picture(i))
    folder = open_dataset(tmp_path / "f", limit)
    assert isinstance(folder, FolderDataset)
    assert len(folder) == len(folder.turns) == count


def test_pictures_smaller_than_their_size_can_be_left_out(make, tmp_path):
    for name, side in (("a", 64), ("b", 63), ("c", 100)):
        make.put(tmp_path, f"2_x/{name}.png", "a caption", make.picture(0, side, side))
    make.put(tmp_path, "2_x/d.png", "a caption", b"no picture")
    dataset = open_dataset(tmp_path)
    dataset.leave_out_small(Framing(64 * 64, 8))
    assert [dataset[number].id for number in dataset.turns] == [f"2_x/{name}.png" for name in "aaccdd"]
    with pytest.raises(U1Error, match="no picture is left to train on"):
        dataset.leave_out({0, 2, 3})


def test_what_is_no_set_of_pictures(tmp_path):
    with pytest.raises(U1Error, match=r"nothing\.parquet: there is no such folder"):
        open_dataset(tmp_path / "nothing.parquet")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(U1Error, match=r"notes\.md: is a file, not a folder"):
        open_dataset(tmp_path / "notes.md")


def test_repeats_below_none(make, tmp_path):
    path = make.table(tmp_path / "t.parquet", 3, repeats=[1, -2, 0])
    with pytest.raises(U1Error, match=r"t\.parquet: row 1 has -2 repeats; 0 leaves it out, 1 is the rule"):
        open_dataset(path)
