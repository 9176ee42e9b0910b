import json
import mmap
import random
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from u1_core.errors import U1Error
from u1_core.model.config import FM_HEAD, LM_HEAD, U1Config, tensor_shapes
from u1_core.weights.header import read_header
from u1_core.weights.snapshot import Snapshot, check_shapes
from u1_core.weights.tiny import KINDS, tiny_config

NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(models, tmp_path) -> Path:
    """A copy of the tiny U1, to be spoiled."""
    return Path(shutil.copytree(models["u1"], tmp_path / "u1"))


def rewrite(folder: Path, change) -> dict[str, torch.Tensor]:
    """Pass the folder's tensors through `change` (which may edit in place) and write them back."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors = change(tensors) or tensors
    save_file(tensors, folder / "model.safetensors")
    return tensors


def shard(folder: Path, count: int = 3, index: bool = True) -> list[Path]:
    """Cut the folder's file into shards."""
    tensors = load_file(folder / "model.safetensors")
    names, weight_map, files = list(tensors), {}, []
    for i in range(count):
        path = folder / f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = names[i::count]
        save_file({name: tensors[name] for name in part}, path)
        weight_map |= dict.fromkeys(part, path.name)
        files.append(path)
    (folder / "model.safetensors").unlink()
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def problem_of(path: Path) -> str:
    with pytest.raises(U1Error) as raised:
        Snapshot.open(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_opens_each_kind_and_reads_every_tensor(models, kind):
    snapshot = Snapshot.open(models[kind])
    direct = load_file(models[kind] / "model.safetensors")
    assert snapshot.kind == kind
    assert snapshot.config.head_width == 128
    assert set(snapshot.tensors) == set(direct)
    assert all(torch.equal(snapshot.read(name), tensor) for name, tensor in direct.items())
    assert snapshot.total_bytes == sum(tensor.nbytes for tensor in direct.values())


def test_single_file_shards_with_and_without_index_give_the_same(folder):
    whole = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    assert Snapshot.open(folder / "model.safetensors").folder == folder
    shard(folder)
    indexed = Snapshot.open(folder)
    (folder / "model.safetensors.index.json").unlink()
    bare = Snapshot.open(folder)
    assert indexed.tensors == bare.tensors
    for name, tensor in whole.items():
        assert torch.equal(indexed.read(name), tensor)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_comfyui_prefix_is_taken_off(folder, prefix):
    original = Snapshot.open(folder).read(NORM).clone()
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert torch.equal(Snapshot.open(folder).read(NORM), original)


def test_mixed_dtypes_are_accepted(folder):
    def mix(tensors):
        for i, name in enumerate(tensors):
            tensors[name] = tensors[name].to((torch.float32, torch.bfloat16, torch.float16)[i % 3])

    tensors = rewrite(folder, mix)
    snapshot = Snapshot.open(folder)
    assert {name: entry.dtype for name, entry in snapshot.tensors.items()} == {n: t.dtype for n, t in tensors.items()}


def test_all_problems_are_told_together(folder):
    def spoil(tensors):
        del tensors[NORM]
        tensors["extra.weight"] = torch.zeros(1)
        tensors[LM_HEAD] = tensors[LM_HEAD][:-1].contiguous()
        tensors["vision_model.embeddings.patch_embedding.bias"] = torch.zeros(32, dtype=torch.float64)

    rewrite(folder, spoil)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    size = path.stat().st_size
    assert problem_of(folder) == (
        f"model.safetensors is truncated: {size:,} of {size + 10:,} bytes are there; "
        f"1 tensor missing: {NORM}; "
        "1 tensor unexpected: extra.weight; "
        f"1 tensor of wrong shape: {LM_HEAD} is (277, 64), expected (278, 64); "
        "1 tensor of an unsupported dtype (supported: BF16, F16, F32): "
        "vision_model.embeddings.patch_embedding.bias is F64"
    )


def test_many_missing_tensors_are_summed_up(folder):
    rewrite(folder, lambda tensors: {name: tensors[name] for name in tensors if ".layers." not in name})
    start = "language_model.model.layers.0."
    assert problem_of(folder) == (
        f"78 tensors missing, e.g. {start}input_layernorm.weight, {start}self_attn.q_proj.weight, "
        f"{start}self_attn.k_proj.weight"
    )


def test_missing_shards(folder):
    files = shard(folder)
    files[1].unlink()
    assert problem_of(folder).startswith(f"{files[1].name} is missing (the index names it); 34 tensors missing, e.g. ")
    (folder / "model.safetensors.index.json").unlink()
    assert problem_of(folder).startswith(f"{files[1].name} is missing (the other shards' names tell of it); 34 ")


def test_a_damaged_shard_does_not_hide_the_other_problems(folder):
    files = shard(folder)
    files[0].write_bytes(b"\x00" * 100)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    text = problem_of(folder)
    assert f"{files[0]}: its safetensors header is damaged" in text
    assert f"{files[1].name} is truncated" in text


def test_a_tensor_in_two_shards(folder):
    files = shard(folder, index=False)
    first = next(iter(load_file(files[0])))
    tensors = load_file(files[1]) | {first: load_file(files[0])[first]}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, files[1])
    assert problem_of(folder) == f"1 tensor there twice: {first}"


def test_the_wrong_config_is_pointed_out(models, folder):
    shutil.copy(models["u1.5"] / "config.json", folder / "config.json")
    assert problem_of(folder).startswith(
        "the weights have U1's head but config.json says U1.5 (use_pixel_head is true): "
        "take the config.json that belongs to these weights; "
    )


def test_head_mix_ups_hide_no_more_than_the_head():
    u1, u15 = (U1Config.from_dict(tiny_config(kind)) for kind in ("u1", "u1.5"))
    shapes = {name: shape for name, shape in tensor_shapes(u1).items() if not name.startswith(FM_HEAD)}
    pixel = {name: shape for name, shape in tensor_shapes(u15).items() if name.startswith(FM_HEAD)}
    assert check_shapes(u1, shapes | pixel) == [
        "the weights have U1.5's head but config.json says U1 (use_pixel_head is not true): "
        "take the config.json that belongs to these weights"
    ]
    assert len(check_shapes(u1, {name: shape for name, shape in (shapes | pixel).items() if name != NORM})) == 2


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_refused_with_the_reason(folder, suffix):
    reason = f"{suffix} files are not read, as loading one can run any program in it; use the .safetensors form"
    pickle = (folder / "model.safetensors").rename(folder / f"pytorch_model{suffix}")
    assert problem_of(folder) == f"only {pickle.name} and the like are here; {reason}"
    assert problem_of(pickle) == reason
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": pickle.name}}))
    assert problem_of(folder).endswith(reason)


def test_paths_that_are_no_model(folder, tmp_path):
    assert problem_of(tmp_path / "nothing") == "there is no such folder or file"
    assert problem_of(tmp_path) == "there are no .safetensors files in this folder"
    assert "give the folder that holds this file" in problem_of(folder / "config.json")
    assert problem_of(shard(folder)[0]) == "this is one of 3 shards; give the folder that holds them"
    (folder / "config.json").unlink()
    assert "a model folder needs its config.json" in problem_of(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}']
)
def test_bad_indexes(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json: " in problem_of(folder)


def test_200_corrupt_headers_give_nothing_but_u1_errors(folder):
    """Corruption that still reads as the same names, shapes and dtypes (a blank changed) is no corruption."""
    path = folder / "model.safetensors"
    whole, reference = path.read_bytes(), Snapshot.open(folder).tensors
    header_bytes = 8 + int.from_bytes(whole[:8], "little")
    rng, found = random.Random(1), 0
    while found < 200:
        corrupt = bytearray(whole)
        for _ in range(rng.choice([1, 2, 16])):
            corrupt[rng.randrange(header_bytes)] = rng.randrange(256)
        path.write_bytes(corrupt[: rng.choice([len(whole), len(whole), rng.randrange(len(whole))])])
        try:
            assert Snapshot.open(folder).tensors == reference
        except U1Error:
            found += 1


def test_a_file_that_shrinks_after_opening_is_a_u1_error(folder):
    snapshot = Snapshot.open(folder)
    (folder / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(U1Error, match=r"model.safetensors: cannot read language_model.model.norm.weight \("):
        snapshot.read(NORM)


def test_fingerprint_follows_the_contents_not_the_place(models, folder):
    original = Snapshot.open(models["u1"]).fingerprint()
    assert len(original) == 16
    assert Snapshot.open(folder).fingerprint() == original
    rewrite(folder, lambda tensors: {name: tensor + 1e-3 for name, tensor in tensors.items()})
    assert Snapshot.open(folder).fingerprint() != original
    assert len({Snapshot.open(path).fingerprint() for path in models.values()}) == 3


def test_many_threads_read_at_once(models):
    snapshot, wrong = Snapshot.open(models["a3b"]), []
    direct = load_file(models["a3b"] / "model.safetensors")

    def read_all():
        wrong.extend(name for name in direct if not torch.equal(snapshot.read(name), direct[name]))

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(("name", "count"), [("u1_8b", 1116), ("u15_8b", 1116), ("u1_a3b", 24120)])
def test_the_released_models_indexes_pass(shared, name, count):
    config = U1Config.from_file(shared / "u1" / f"config_{name}.json")
    shapes = json.loads((shared / "u1" / f"shapes_{name}.json").read_text(encoding="utf-8"))
    shapes = {key: tuple(shape) for key, shape in shapes.items()}
    assert len(shapes) == count
    assert check_shapes(config, shapes) == []
    shapes.pop(LM_HEAD)
    assert check_shapes(config, shapes) == [f"1 tensor missing: {LM_HEAD}"]


@pytest.mark.parametrize(("name", "kind"), [("dense", "u1"), ("moe", "a3b"), ("u15", "u1.5")])
def test_the_oracle_models_open(oracle, name, kind):
    snapshot = Snapshot.open(oracle(name) / "model")
    assert snapshot.kind == kind
    assert snapshot.read(LM_HEAD).shape == (496, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_into_a_place_gives_what_is_stored_rounded_once(models, dtype):
    snapshot = Snapshot.open(models["a3b"])
    for name, entry in snapshot.tensors.items():
        place = torch.empty(2, *entry.shape, dtype=dtype)[1]
        snapshot.read_into(name, place)
        assert torch.equal(place, snapshot.read(name).to(dtype)), name
    columns = torch.zeros(64, 200)  # a place with gaps
    snapshot.read_into("language_model.model.layers.0.self_attn.q_proj.weight", columns[:, 3:67])
    assert torch.equal(columns[:, 3:67], snapshot.read("language_model.model.layers.0.self_attn.q_proj.weight"))
    assert not columns[:, 67:].any()


def test_a_tensor_of_many_pieces_is_rounded_into_place(models, monkeypatch):
    monkeypatch.setattr("u1_core.weights.snapshot.READ_BYTES", 1000)
    snapshot = Snapshot.open(models["u1"])
    place = torch.empty(96, 64, dtype=torch.bfloat16)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    snapshot.read_into(name, place)
    assert torch.equal(place, snapshot.read(name).bfloat16())


def test_a_file_that_is_cut_off_while_it_is_used_is_named(models, tmp_path):
    folder = shutil.copytree(models["u1"], tmp_path / "model")
    snapshot = Snapshot.open(folder)
    last = max(snapshot.tensors, key=lambda name: snapshot.tensors[name].start)
    entry = snapshot.tensors[last]
    with entry.file.open("r+b") as file:
        file.truncate(entry.file.stat().st_size - 1)
    with pytest.raises(U1Error, match=rf"model.safetensors: cannot read {re.escape(last)} \(it has become shorter\)"):
        snapshot.read_into(last, torch.empty(entry.shape, dtype=entry.dtype))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_reading_into_a_place_takes_no_memory_beside_it(tmp_path, models):
    file = tmp_path / "model.safetensors"
    save_file({"big": torch.ones(2**24)}, file)
    snapshot = Snapshot(tmp_path, Snapshot.open(models["u1"]).config, read_header(file).tensors)
    place = torch.zeros(2**24)
    before = resident_bytes()
    snapshot.read_into("big", place)
    assert place.min() == place.max() == 1  # which, unlike a comparison, takes no memory of its own
    assert resident_bytes() - before < 8e6
    assert snapshot.read("big").sum() == 2**24  # mapped, and now it counts
    assert resident_bytes() - before > 60e6


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE
