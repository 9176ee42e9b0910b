import json

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.model.config import GENERATION, U1Config, tensor_shapes
from u1_core.weights.layout import layer_slices
from u1_core.weights.random_model import RandomWeights, random_tensors, write_random_snapshot
from u1_core.weights.snapshot import Snapshot, check_shapes
from u1_core.weights.store import load_generation, load_understanding
from u1_core.weights.tiny import KINDS, tiny_config


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_its_shape_and_a_sane_spread(kind):
    config = U1Config.from_dict(tiny_config(kind))
    tensors = dict(random_tensors(config, dtype=torch.float32))
    assert check_shapes(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}) == []
    head = tensors["fm_modules.fm_head.conv1.weight" if kind == "u1.5" else "fm_modules.fm_head.0.weight"]
    assert float(head.std()) == pytest.approx(head[0].numel() ** -0.5, rel=0.02)
    assert float(tensors["language_model.model.norm.weight"].mean()) == pytest.approx(1, abs=0.05)
    assert float(tensors["vision_model.embeddings.dense_embedding.bias"].abs().max()) < 0.1


def test_the_seed_decides_and_dtypes_differ_by_rounding_alone():
    config = U1Config.from_dict(tiny_config())
    name = "language_model.model.norm.weight"
    fine, coarse = (dict(random_tensors(config, 3, dtype))[name] for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(fine.to(torch.bfloat16), coarse)
    assert torch.equal(RandomWeights(config, 3).read(name), fine)
    assert not torch.equal(RandomWeights(config, 4).read(name), fine)


def test_a_written_snapshot_is_the_model_made_in_memory(tmp_path):
    write_random_snapshot(tmp_path / "model", tiny_config("a3b"), 5, torch.bfloat16, shard_bytes=400_000, head_width=32)
    snapshot = Snapshot.open(tmp_path / "model")
    assert snapshot.config.head_width == 32
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 3
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == tiny_config("a3b")
    made = load_generation(RandomWeights(snapshot.config, 5), "cpu", torch.bfloat16)
    held = dict(layer_slices(snapshot.config, GENERATION, 1, made.layers[1])) | dict(made.modules)
    assert all(torch.equal(tensor, snapshot.read(name)) for name, tensor in held.items())
    understanding = load_understanding(RandomWeights(snapshot.config, 5), "cpu", torch.bfloat16)
    assert torch.equal(understanding.lm_head, snapshot.read("language_model.lm_head.weight"))
    assert len(tensor_shapes(snapshot.config)) == len(snapshot.tensors)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(U1Error, match="is already there and not empty"):
        write_random_snapshot(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
