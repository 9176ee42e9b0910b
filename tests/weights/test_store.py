import itertools

import pytest
import torch

from u1_core.model.config import EMBED_TOKENS, GENERATION, LM_HEAD, UNDERSTANDING, tensor_shapes
from u1_core.model.views import LayerWeights
from u1_core.weights import store
from u1_core.weights.arena import Arena
from u1_core.weights.layout import layer_slices
from u1_core.weights.placement import Placement
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.store import LayersOnDisk, load_generation, load_understanding
from u1_core.weights.tiny import KINDS
from u1_core.weights.write import write_safetensors


def layer_tensors(snapshot: Snapshot, tower: str, layers) -> dict[str, torch.Tensor]:
    """A tower's layers by checkpoint names."""
    pairs = (layer_slices(snapshot.config, tower, i, layer) for i, layer in enumerate(layers))
    return dict(itertools.chain.from_iterable(pairs))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_two_towers_hold_every_tensor_of_the_checkpoint(models, kind, resident):
    snapshot = Snapshot.open(models[kind])
    understanding = load_understanding(snapshot, "cpu", torch.float32, resident)
    generation = load_generation(snapshot, "cpu", torch.float32, resident)
    held = layer_tensors(snapshot, UNDERSTANDING, understanding.layers)
    held |= layer_tensors(snapshot, GENERATION, generation.layers)
    held |= {EMBED_TOKENS: understanding.embed_tokens, LM_HEAD: understanding.lm_head}
    held |= {"language_model.model.norm.weight": understanding.norm}
    held |= {"language_model.model.norm_mot_gen.weight": generation.norm}
    held |= {**understanding.vision, **generation.modules}
    assert set(held) == set(tensor_shapes(snapshot.config))
    assert [name for name, tensor in held.items() if not torch.equal(tensor, snapshot.read(name))] == []


def test_dtypes_are_rounded_once(models, tmp_path):
    """fp32 and fp16 to bf16 is torch's own single rounding; mixed checkpoints come out in one dtype."""
    snapshot = Snapshot.open(models["u1"])
    mixed = {
        name: snapshot.read(name).to(torch.float16 if "self_attn" in name else torch.float32)
        for name in snapshot.tensors
    }
    write_safetensors(tmp_path / "model.safetensors", mixed)
    (tmp_path / "config.json").write_bytes((models["u1"] / "config.json").read_bytes())
    mixed_snapshot = Snapshot.open(tmp_path)
    generation = load_generation(mixed_snapshot, "cpu", torch.bfloat16)
    held = layer_tensors(mixed_snapshot, GENERATION, generation.layers) | dict(generation.modules)
    assert [name for name, tensor in held.items() if not torch.equal(tensor, mixed[name].to(torch.bfloat16))] == []
    understanding = load_understanding(mixed_snapshot, "cpu", torch.bfloat16, resident=False)
    assert understanding.embed_tokens.dtype == torch.bfloat16


def test_layers_on_disk_are_fresh_and_behave_as_a_sequence(models):
    layers = load_generation(Snapshot.open(models["u1"]), "cpu", torch.float32, resident=False).layers
    assert isinstance(layers, LayersOnDisk)
    assert len(layers) == 3
    assert len(list(reversed(layers))) == 3
    assert all(isinstance(layer, LayerWeights) for layer in layers)
    assert torch.equal(layers[-1].qkv, layers[2].qkv)
    layers[0].qkv.zero_()
    assert float(layers[0].qkv.abs().max()) > 0
    with pytest.raises(IndexError):
        layers[3]


def test_resident_tensors_do_not_depend_on_the_file(models):
    snapshot = Snapshot.open(models["u1"])
    generation = load_generation(snapshot, "cpu", torch.float32)
    name = "fm_modules.fm_head.0.weight"
    generation.modules[name].zero_()
    assert float(snapshot.read(name).abs().max()) > 0


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("load", [load_understanding, load_generation])
def test_progress_rises_to_the_whole(models, load, resident):
    seen = []
    load(Snapshot.open(models["a3b"]), "cpu", torch.float32, resident, lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(set(done))
    assert {step[1] for step in seen} == {done[-1]}


@pytest.mark.parametrize("name", ["dense", "moe", "u15"])
def test_oracle_models_load_resident_and_from_disk_alike(oracle, name):
    snapshot = Snapshot.open(oracle(name) / "model")
    for tower, load in ((UNDERSTANDING, load_understanding), (GENERATION, load_generation)):
        resident, read = (
            layer_tensors(snapshot, tower, load(snapshot, "cpu", torch.bfloat16, r).layers) for r in (True, False)
        )
        assert all(torch.equal(tensor, read[key]) for key, tensor in resident.items())
        assert all(torch.equal(tensor, snapshot.read(key)) for key, tensor in resident.items())


def test_an_arena_is_for_the_device_that_layers_are_streamed_to(models, monkeypatch):
    made, device = [], torch.device("meta")
    monkeypatch.setattr(store, "Arena", lambda *about: made.append(about) or Arena(*about))
    load_generation(Snapshot.open(models["u1"]), device, torch.float32, Placement(frozenset(), slots=2))
    assert [about[-1] for about in made] == [device]
