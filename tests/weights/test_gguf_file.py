import contextlib
import os
import random
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from u1_core.errors import U1Error
from u1_core.model.config import EMBED_TOKENS, LM_HEAD, VISION_GEN, tensor_shapes
from u1_core.session import Session
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Recipe
from u1_core.weights.dequantise import FORMATS
from u1_core.weights.gguf_file import GgufSource, refuse_training_on_quantised
from u1_core.weights.snapshot import Snapshot

CONV = f"{VISION_GEN}.dense_embedding.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="session")
def q4(gguf_model):
    """A U1 as Q4_K_M. Read only."""
    return gguf_model()


@pytest.fixture
def copied(q4, tmp_path) -> Path:
    """The same file in a folder of its own, to be spoiled."""
    return Path(shutil.copytree(q4.path.parent, tmp_path / "copy")) / q4.path.name


def problem_of(path: Path) -> str:
    with pytest.raises(U1Error) as raised:
        GgufSource.open(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{path}: ")


def write_gguf(path: Path, tensors, **settings) -> Path:
    """A file of (name, array, type) beside nothing."""
    writer = gguf.GGUFWriter(path, "sensenova_u1", **settings)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "recipe", ["Q8_0", "Q6_K", "Q5_K_S", "Q5_1", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "BF16", "F16"]
)
def test_every_tensor_is_what_the_package_makes_of_it(gguf_model, recipe):
    model = gguf_model(recipe)
    source = GgufSource.open(model.path)
    assert (source.kind, source.config, source.folder) == ("u1", model.config, model.path.parent)
    assert set(source.tensors) == set(tensor_shapes(source.config))
    for name, numbers in model.numbers.items():
        tensor, place = source.read(name), torch.empty(numbers.shape, dtype=torch.bfloat16)
        assert np.array_equal(tensor.float().numpy(), numbers), name
        source.read_into(name, place)
        assert torch.equal(place, torch.tensor(numbers).to(torch.bfloat16)), name


@pytest.mark.parametrize("kind", ["u1.5", "a3b"])
def test_other_kinds_of_model(gguf_model, kind):
    model = gguf_model(kind=kind)
    source = GgufSource.open(model.path)
    assert source.kind == kind
    assert all(np.array_equal(source.read(name).float().numpy(), numbers) for name, numbers in model.numbers.items())


def test_what_is_not_quantised_keeps_its_dtype(q4):
    source = GgufSource.open(q4.path)
    assert source.read(EMBED_TOKENS).dtype == torch.float16
    assert source.read(NORM).dtype == source.read(LM_HEAD).dtype == torch.float32


def test_the_types_and_bytes_of_a_file(q4, gguf_model):
    source = GgufSource.open(q4.path)
    assert source.quantised_types == ("Q4_K", "Q6_K")
    stored = sum(len(source.raw(name)) for name in source.tensors)
    assert source.total_bytes == stored < q4.path.stat().st_size
    assert len(source.raw(LM_HEAD)) == source.config.vocab_size * 210
    assert GgufSource.open(gguf_model("BF16").path).quantised_types == ()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_names_as_files_for_comfyui_have_them(gguf_model, prefix):
    """And tensors whose rows are too short for blocks, stored in others: their shape is in the metadata."""
    model = gguf_model("Q8_0", prefix=prefix, rearranged=(CONV,))
    source = GgufSource.open(model.path)
    assert source.tensors[CONV].type == "Q8_0"
    assert source.read(CONV).shape == tensor_shapes(source.config)[CONV] == (256, 64, 2, 2)
    assert np.array_equal(source.read(CONV).numpy(), model.numbers[CONV])


def test_another_shape_in_the_metadata_must_hold_as_many_numbers(q4, tmp_path):
    (tmp_path / "config.json").write_bytes((q4.path.parent / "config.json").read_bytes())
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "sensenova_u1")
    writer.add_array(f"comfy.gguf.orig_shape.{NORM}", [2, 256])
    writer.add_tensor(NORM, np.zeros((1, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert f"{NORM} is (1, 256), expected (256,)" in problem_of(tmp_path / "model.gguf")


def test_without_the_gguf_package(q4, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert (
        problem_of(q4.path) == ".gguf files are read with the gguf package, which is not installed: pip install -U gguf"
    )


def test_without_a_config_it_says_what_to_put_where(copied):
    (copied.parent / "config.json").unlink()
    message = problem_of(copied)
    assert message.startswith("there is no config.json beside it, and a .gguf has neither dimensions nor tokenizer;")
    assert message.endswith(f"of the model it was made from into {copied.parent}")


def test_no_such_file(tmp_path):
    assert problem_of(tmp_path / "u1.gguf") == "there is no such file"


def test_all_problems_come_together(copied):
    """Missing, unexpected and misshapen tensors, and types that there is no way to read."""
    source = GgufSource.open(copied)
    shapes = tensor_shapes(source.config)
    tensors = [(name, np.zeros(shape, np.float32), "F32") for name, shape in shapes.items()]
    tensors = [tensor for tensor in tensors if tensor[0] not in (NORM, EMBED_TOKENS, LM_HEAD)]
    tensors += [(EMBED_TOKENS, np.zeros((4, 256), np.float32), "F32"), ("extra", np.zeros(32, np.float32), "F32")]
    tensors += [(LM_HEAD, np.zeros((*shapes[LM_HEAD][:1], 136), np.uint8), "IQ4_XS")]
    message = problem_of(write_gguf(copied.with_name("bad.gguf"), tensors))
    assert message.split("; ") == [
        f"1 tensor missing: {NORM}",
        "1 tensor unexpected: extra",
        f"1 tensor of wrong shape: {EMBED_TOKENS} is (4, 256), expected {shapes[EMBED_TOKENS]}",
        f"1 tensor of an unsupported type (supported: {', '.join(FORMATS)}): {LM_HEAD} is IQ4_XS",
    ]


def test_weights_of_one_kind_with_the_config_of_another(gguf_model, copied):
    shutil.copy(gguf_model(kind="u1.5").path.parent / "config.json", copied.parent)
    assert "the weights have U1's head but config.json says U1.5" in problem_of(copied)


@pytest.mark.parametrize("share", [0, 0.00001, 0.001, 0.5, 0.9999999])
def test_a_file_that_is_cut_off(copied, share):
    size = int(share * copied.stat().st_size)
    os.truncate(copied, size)
    message = problem_of(copied)
    assert message.startswith(f"not a GGUF file, or damaged or cut off ({size:,} bytes are there; ")
    assert message.endswith("; download or copy it again")


def test_damage_in_the_header_never_escapes_as_a_traceback(copied):
    """A byte changed at random either is said, or is one of those that say nothing about the tensors."""
    numbers, whole = random.Random(0), copied.read_bytes()
    start = min(entry.start for entry in GgufSource.open(copied).tensors.values())
    messages = []
    for _ in range(60):
        spoiled = bytearray(whole)
        spoiled[numbers.randrange(start)] ^= 1 << numbers.randrange(8)
        copied.write_bytes(spoiled)
        with contextlib.suppress(U1Error):
            GgufSource.open(copied)
            continue
        messages.append(problem_of(copied))
    assert len(messages) > 40


def test_a_file_of_another_byte_order(copied):
    path = write_gguf(
        copied.with_name("big.gguf"), [(NORM, np.zeros(256, np.float32), "F32")], endianess=gguf.GGUFEndian.BIG
    )
    assert problem_of(path) == "its bytes are in the order of another kind of machine; take a little-endian file"


def test_one_part_of_a_file_that_was_split(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "u1-00001-of-00003.gguf", "sensenova_u1")
    writer.add_uint16("split.count", 3)
    writer.add_tensor(NORM, np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = problem_of(tmp_path / "u1-00001-of-00003.gguf")
    assert message == "this is one of 3 parts; join them first (llama-gguf-split --merge)"


def test_fingerprint_follows_the_contents_not_the_place(q4, copied):
    fingerprint = GgufSource.open(q4.path).fingerprint()
    assert len(fingerprint) == 16
    assert GgufSource.open(copied).fingerprint() == fingerprint
    content = bytearray(copied.read_bytes())
    content[-1] ^= 1
    copied.write_bytes(content)
    assert GgufSource.open(copied).fingerprint() == fingerprint  # a sample is not all
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    assert GgufSource.open(copied).fingerprint() != fingerprint


def test_training_on_a_quantised_base_is_refused_before_anything_else(q4):
    with pytest.raises(U1Error) as raised:
        prepare(None, Session.open(q4.path, "cpu"), Recipe())
    assert str(raised.value) == (
        f"{q4.path}: training needs a base that is not quantised, and this one is (Q4_K, Q6_K): on 4- and 8-bit bases "
        "LoRAs came out with grid patterns and malformed limbs. Train on the model's .safetensors; the LoRA can then "
        "be used with this file"
    )


def test_training_on_what_is_not_quantised_is_not_refused(models, gguf_model):
    refuse_training_on_quantised(Snapshot.open(models["u1"]))
    refuse_training_on_quantised(GgufSource.open(gguf_model("BF16").path))


def test_where_a_snapshot_is_needed_a_gguf_file_is_turned_away(copied):
    """Merging, for one, writes the tensors it has read; and a folder does not say which of its files is meant."""
    with pytest.raises(U1Error, match=r"a \.gguf file is for sampling; give the model's folder or \.safetensors file"):
        Snapshot.open(copied)
    with pytest.raises(U1Error) as raised:
        Snapshot.open(copied.parent)
    assert str(raised.value).endswith(f"to sample from a .gguf file, give it: {copied}")
