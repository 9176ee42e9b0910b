"""Weights on a card: read layer by layer, streamed, kept as blocks, folded; each against the plain way."""

import pytest
import torch

from u1_core.lora.merge import merge_loras
from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.plan.budget import MODES
from u1_core.prefix.build import build_blocks
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.text.sequence import build_sequence
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.layout import layer_slices
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.placement import Placement
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.store import load_generation, load_understanding
from u1_core.weights.tiny import KINDS, write_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA card here")
CARD = torch.device("cuda")
SETTINGS = SampleSettings(width=32, height=32, steps=2, guidance=Guidance(4.0))
PLACEMENTS = [Placement.spread(3, resident, slots) for resident, slots in ((0, 1), (0, 2), (1, 2), (3, 2))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind -> a tiny model in bf16. Read only."""
    root = tmp_path_factory.mktemp("card")
    for kind in KINDS:
        write_tiny_model(root / kind, kind, dtype=torch.bfloat16)
    return {kind: root / kind for kind in KINDS}


def same_layers(ours, theirs, config, tower: str, order=(0, 2, 1, 1, 0, 2)) -> bool:
    pairs = ((layer_slices(config, tower, i, ours[i]), layer_slices(config, tower, i, theirs[i])) for i in order)
    return all(torch.equal(a.cpu(), b.cpu()) for one, other in pairs for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_read_as_they_are_used(models, kind, dtype):
    snapshot = Snapshot.open(models[kind])
    here = load_understanding(snapshot, "cpu", dtype)
    there = load_understanding(snapshot, CARD, dtype, resident=False)
    assert isinstance(there.layers, LayersOnDisk)
    assert same_layers(there.layers, here.layers, snapshot.config, UNDERSTANDING)
    assert there.lm_head.device.type == there.embed_tokens.device.type == "cpu"
    assert there.norm.device.type == there.layers[1].qkv.device.type == "cuda"


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_streamed_from_page_locked_memory(models, kind, placement):
    snapshot = Snapshot.open(models[kind])
    layers = load_generation(snapshot, CARD, torch.bfloat16, placement).layers
    assert layers.pinned == set(range(3)) - placement.resident
    assert same_layers(layers, load_generation(snapshot, "cpu", torch.bfloat16).layers, snapshot.config, GENERATION)
    layers.close()


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize("kind", ["u1", "a3b"])
def test_blocks_streamed_and_dequantised_on_the_card(gguf_model, kind, placement):
    source = GgufSource.open(gguf_model("Q4_K_M", kind).path)
    layers = load_generation(source, CARD, torch.bfloat16, placement).layers
    assert same_layers(layers, load_generation(source, "cpu", torch.bfloat16).layers, source.config, GENERATION)
    layers.close()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_q4_k_file_with_a_lora_in_every_mode(gguf_model, tmp_path, close, dtype, lora):
    model = gguf_model("Q4_K_M")
    reference = Session.open(model.write_dequantised(tmp_path / "dequantised"), "cuda", dtype)
    plain = text_to_image(reference, "a fox", SETTINGS).pictures
    reference.use([lora(reference.config)])
    theirs = text_to_image(reference, "a fox", SETTINGS).pictures
    assert (theirs - plain).abs().max() > 0.01
    for mode in MODES:
        session = Session.open(model.path, "cuda", dtype, budget=mode)
        session.use([lora(session.config)])
        ours = text_to_image(session, "a fox", SETTINGS).pictures
        print(mode, type(session.base_generation.layers).__name__, torch.equal(ours, theirs))
        assert close(ours, theirs, 1e-5 if dtype == "fp32" else 2e-2)


@pytest.mark.parametrize("placement", [None, *PLACEMENTS], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_folded_on_the_card_is_merged(models, tmp_path, kind, placement, lora):
    session = Session.open(models[kind], "cuda", "bf16", placement=placement)
    adapter = lora(session.config)

    def differing(folder) -> list[str]:
        other, tower = Snapshot.open(folder), session.base_generation
        layers = load_generation(other, "cpu", torch.bfloat16).layers
        modules = [name for name, tensor in tower.modules.items() if not torch.equal(tensor.cpu(), other.read(name))]
        return modules + ["layers"] * (not same_layers(tower.layers, layers, session.config, GENERATION))

    merge_loras(session.snapshot, [adapter], tmp_path / "merged")
    assert differing(models[kind]) == []
    session.fold([adapter])
    assert differing(tmp_path / "merged") == []
    session.unfold()
    assert differing(models[kind]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_prompts_are_the_same_bits_alone_and_resting_anywhere(models, kind):
    session = Session.open(models[kind], "cuda", "bf16")
    prompts = [build_sequence(session.tokenizer, f"one and the same beginning, and then number {i}") for i in range(6)]
    units, head = [prompts[:4], prompts[4:]], prompts[0].ids[:20].tolist()
    together = build_blocks(session.config, session.understanding, units, head, rest=torch.device("cpu"))
    for unit, expected in zip(units, together, strict=True):
        (alone,) = build_blocks(session.config, session.understanding, [unit], head)
        for one, other in zip(alone, expected, strict=True):
            assert (one.chunks[1].k.device.type, other.chunks[1].k.device.type) == ("cuda", "cpu")
            assert all(torch.equal(a.k.cpu(), b.k) for a, b in zip(one.chunks, other.chunks, strict=True))
