"""Sampling on a quantised model, wherever its blocks are, against the same numbers dequantised beforehand."""

import math
import mmap
from collections.abc import Callable

import pytest
import torch

from u1_core.cli.main import main
from u1_core.errors import U1Error
from u1_core.model.config import EMBED_TOKENS, GENERATION, UNDERSTANDING
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.gguf_layers import BlockArena, QuantisedLayers
from u1_core.weights.layout import layer_bytes, layer_slices
from u1_core.weights.placement import Placement
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.store import load_generation

SETTINGS = SampleSettings(width=32, height=32, steps=2, guidance=Guidance(4.0))
PLACEMENTS = ("dequantised on the device", "blocks on the device", "blocks in the file")


@pytest.fixture(scope="session")
def q4(gguf_model):
    """A U1 as Q4_K_M. Read only."""
    return gguf_model()


@pytest.fixture
def open_at(monkeypatch) -> Callable[..., Session]:
    """(path, placement, dtype="fp32") -> a session that finds as much room on its device as leads to that placement."""

    def open_session(path, placement: str, dtype: str = "fp32") -> Session:
        session = Session.open(path, "cpu", dtype)
        whole = layer_bytes(session.config, GENERATION, 0, session.dtype) * session.config.layers
        room = dict(zip(PLACEMENTS, (math.inf, 0.999 * whole, 0), strict=True))[placement]
        monkeypatch.setattr(session, "_room_bytes", lambda: room)
        return session

    return open_session


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_picture_with_a_lora_is_that_of_the_dequantised_model(q4, open_at, tmp_path, placement, dtype, lora):
    """To the last bit: prompt, guidance, LoRA and all."""
    reference = Session.open(q4.write_dequantised(tmp_path / "dequantised"), "cpu", dtype)
    session = open_at(q4.path, placement, dtype)
    plain = text_to_image(reference, "a fox", SETTINGS).pictures
    for one in (reference, session):
        one.use([lora(one.config)])
    theirs, ours = (text_to_image(one, "a fox", SETTINGS).pictures for one in (reference, session))
    assert torch.equal(ours, theirs)
    assert torch.isfinite(ours).all()
    assert (theirs - plain).abs().max() > 0.01
    assert theirs.std() > 0.01


@pytest.mark.parametrize("kind", ["u1.5", "a3b"])
@pytest.mark.parametrize("recipe", ["Q5_K_S", "Q4_0"])
def test_other_kinds_and_formats(gguf_model, open_at, tmp_path, kind, recipe):
    model = gguf_model(recipe, kind)
    reference = Session.open(model.write_dequantised(tmp_path / "dequantised"), "cpu")
    theirs = text_to_image(reference, "a fox", SETTINGS).pictures
    assert torch.equal(text_to_image(open_at(model.path, "blocks in the file"), "a fox", SETTINGS).pictures, theirs)


def test_a_lora_is_not_folded_into_blocks(q4, lora):
    session = Session.open(q4.path, "cpu")
    with pytest.raises(U1Error, match="LoRAs cannot be folded into a quantised base; use them beside it"):
        session.fold([lora(session.config)])


def test_room_decides_where_the_blocks_are(q4, open_at):
    dequantised, held, mapped = (open_at(q4.path, placement).understanding.layers for placement in PLACEMENTS)
    assert isinstance(dequantised, list)
    assert all(isinstance(layers, QuantisedLayers) for layers in (held, mapped))
    assert (held.held, mapped.held) == (True, False)


def test_layers_are_fresh_and_behave_as_a_sequence(q4):
    source = GgufSource.open(q4.path)
    layers = QuantisedLayers(source, UNDERSTANDING, "cpu", torch.float32)
    assert len(layers) == len(list(layers)) == 3
    last = dict(layer_slices(source.config, UNDERSTANDING, 2, layers[-1]))
    assert all(torch.equal(tensor, source.read(name)) for name, tensor in last.items())
    layers[0].qkv.zero_()
    assert layers[0].qkv.abs().max() > 0
    with pytest.raises(IndexError):
        layers[3]


def test_blocks_take_the_bytes_that_the_file_has(q4):
    source = GgufSource.open(q4.path)
    layers = QuantisedLayers(source, GENERATION, "cpu", torch.bfloat16)
    entries = (entry for name, entry in source.tensors.items() if ".layers." in name and "_mot_gen" in name)
    assert layers.n_bytes == sum(entry.n_bytes for entry in entries)
    assert layers.n_bytes < 0.33 * 3 * layer_bytes(source.config, GENERATION, 0, torch.bfloat16)
    before = layers.n_bytes
    layers.hold()
    assert layers.n_bytes == before


def test_the_embedding_of_tokens_stays_in_host_memory_rounded_once(q4, open_at):
    understanding = open_at(q4.path, "blocks in the file", "bf16").understanding
    expected = torch.tensor(q4.numbers[EMBED_TOKENS]).to(torch.bfloat16)
    assert torch.equal(understanding.embed_tokens, expected)


def test_u1_sample_takes_a_gguf_file(q4, tmp_path):
    arguments = ("--size", "32x32", "--steps", "1", "--device", "cpu")
    assert main(["sample", "a fox", "--model", str(q4.path), *arguments, "--out", str(tmp_path / "fox.png")]) == 0
    assert (tmp_path / "fox.png").stat().st_size > 500


@pytest.mark.parametrize("resident", [0, 1, 3])
@pytest.mark.parametrize("kind", ["u1", "a3b"])
def test_streamed_as_blocks(gguf_model, kind, resident):
    """Through a ring of two slots: the same layers, forward and backward, from a host memory of blocks."""
    model, told = gguf_model("Q4_K_M", kind), []
    source, placement = GgufSource.open(model.path), Placement.spread(3, resident, slots=2)
    layers = load_generation(source, "cpu", torch.bfloat16, placement, lambda *counts: told.append(counts)).layers
    assert isinstance(layers, StreamedLayers)
    assert told[-1][0] == told[-1][1] == max(total for _, total in told)
    whole = load_generation(source, "cpu", torch.bfloat16).layers
    for index in (0, 1, 2, 2, 1, 0, 1):
        ours, theirs = (dict(layer_slices(source.config, GENERATION, index, each[index])) for each in (layers, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    most = layer_bytes(source.config, GENERATION, 0, torch.bfloat16)
    assert layers.slot_bytes < (0.7 * most if resident < 3 else 1)
    layers.close()


@pytest.mark.parametrize("resident", [0, 1, 3])
def test_a_picture_with_a_lora_from_streamed_blocks(q4, tmp_path, resident, lora):
    """As budgets place them: every layer in turn through two slots, some on the device, all of them."""
    reference = Session.open(q4.write_dequantised(tmp_path / "dequantised"), "cpu")
    session = Session.open(q4.path, "cpu", placement=Placement.spread(3, resident, slots=2))
    for one in (reference, session):
        one.use([lora(one.config)])
    theirs, ours = (text_to_image(one, "a fox", SETTINGS).pictures for one in (reference, session))
    assert torch.equal(ours, theirs)
    assert isinstance(session.base_generation.layers, StreamedLayers if resident < 3 else list)


def test_an_arena_of_blocks_takes_the_bytes_that_the_file_has(q4):
    source = GgufSource.open(q4.path)
    arena = BlockArena(source, GENERATION, [0, 2], torch.bfloat16)
    arena.fill(source)
    entries = (entry for name, entry in source.tensors.items() if ".layers." in name and "_mot_gen" in name)
    blocks = sum(entry.n_bytes for entry in entries) * 2 / 3
    assert blocks <= arena.n_bytes < blocks + 2 * 11 * 256 + 2 * mmap.PAGESIZE
    assert arena.layer(2).dtype == torch.uint8
