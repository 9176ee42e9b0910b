import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from u1_core.errors import U1Error
from u1_core.weights.header import read_header
from u1_core.weights.write import SafetensorsWriter, replacing, write_safetensors

TENSORS = {
    "alpha": torch.tensor(64.0, dtype=torch.bfloat16),
    "odd": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(5, 3).to(torch.bfloat16),
    "turned": torch.randn(4, 6).T,
    "empty": torch.zeros(0, 4),
    "wide": torch.randn(2, dtype=torch.float64),
}
SPECS = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def test_the_safetensors_library_reads_back_what_was_written(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    write_safetensors(path, TENSORS, {"trigger": "drawn by ñ"})
    back = load_file(path)
    assert set(back) == set(TENSORS)
    assert all(back[name].dtype == tensor.dtype and torch.equal(back[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"trigger": "drawn by ñ"}


def test_tensors_are_aligned_to_their_item_size(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS)
    header = read_header(tmp_path / "x.safetensors")
    first = header.declared_bytes - sum(tensor.nbytes for tensor in TENSORS.values())
    assert first % 8 == 0
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in header.tensors.values())


def test_nothing_is_overwritten_unless_told(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(1)})
    with pytest.raises(U1Error, match=r"x.safetensors: is already there; choose another name"):
        write_safetensors(path, {"a": torch.ones(1)})
    assert load_file(path)["a"].item() == 0
    write_safetensors(path, {"a": torch.ones(1)}, overwrite=True)
    assert load_file(path)["a"].item() == 1


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def half_a_write():
        with replacing(path, overwrite=True) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(U1Error, match=r"file/x: cannot be written \(") as raised:
        write_safetensors(tmp_path / "file" / "x", TENSORS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("shard_bytes", "files"), [(10**9, 1), (100, 3), (1, 6)])
def test_streamed_shards_in_any_order(tmp_path, shard_bytes, files):
    folder = tmp_path / "model"
    with SafetensorsWriter(folder, SPECS, {"format": "pt"}, shard_bytes) as writer:
        (writer.folder / "config.json").write_text("{}", encoding="utf-8")
        for name in reversed(list(TENSORS)):
            writer.write(name, TENSORS[name])
        assert not folder.exists()
    assert list(tmp_path.iterdir()) == [folder]
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == files
    assert (folder / "config.json").read_text() == "{}"
    back = {name: (shard.name, tensor) for shard in shards for name, tensor in load_file(shard).items()}
    assert all(torch.equal(back[name][1], tensor) for name, tensor in TENSORS.items())
    assert all(read_header(shard).metadata == {"format": "pt"} for shard in shards)
    if files == 1:
        assert shards[0].name == "model.safetensors"
        assert not (folder / "model.safetensors.index.json").exists()
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: back[name][0] for name in TENSORS}
        assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in TENSORS.values())}
        assert shards[0].name == f"model-00001-of-{files:05}.safetensors"


def test_an_unfinished_folder_never_appears(tmp_path):
    def stop_half_way():
        with SafetensorsWriter(tmp_path / "model", SPECS, shard_bytes=1) as writer:
            writer.write("half", TENSORS["half"])
            raise KeyboardInterrupt

    def leave_some_out():
        with SafetensorsWriter(tmp_path / "model", SPECS) as writer:
            writer.write("half", TENSORS["half"])

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    with pytest.raises(ValueError, match="5 declared tensors were not written"):
        leave_some_out()
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_refused_and_an_empty_one_filled(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(U1Error, match="is already there and not empty; choose another folder"):
        SafetensorsWriter(tmp_path, SPECS)
    (tmp_path / "empty").mkdir()
    with SafetensorsWriter(tmp_path / "empty", {"half": SPECS["half"]}) as writer:
        writer.write("half", TENSORS["half"])
    assert load_file(tmp_path / "empty" / "model.safetensors").keys() == {"half"}


def test_a_tensor_other_than_declared_is_our_own_mistake(tmp_path):
    with (
        pytest.raises(ValueError, match="half was declared as"),
        SafetensorsWriter(tmp_path / "model", SPECS) as writer,
    ):
        writer.write("half", TENSORS["half"].float())
