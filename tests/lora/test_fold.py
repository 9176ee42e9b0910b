"""LoRAs in the weights of an open model, against the folder that `u1 lora merge` writes."""

import itertools
import threading
from collections.abc import Callable

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.merge import merge_loras
from u1_core.model.config import EMBED_TOKENS, GENERATION, UNDERSTANDING, U1Config
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.weights import ring
from u1_core.weights.layout import layer_slices
from u1_core.weights.placement import Placement
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.tiny import KINDS, write_tiny_model

SETTINGS = SampleSettings(width=32, height=32, steps=2)
NORM = "language_model.model.norm_mot_gen.weight"
UNDERSTOOD = "language_model.model.layers.1.self_attn.k_proj"
RESIDENT, STREAMED, SOME = None, Placement.spread(3, 0, slots=2), Placement.spread(3, 1, slots=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Kind -> a tiny model in bf16. Read only."""
    root = tmp_path_factory.mktemp("fold")
    for kind in KINDS:
        write_tiny_model(root / kind, kind, dtype=torch.bfloat16)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def lora(random_modules) -> Callable[..., Adapter]:
    """(config, seed=0, skip="none") -> a LoRA on every linear map and convolution of the generation tower and one of
    the understanding tower, with a full tensor; strong enough to change nearly every number."""

    def make(config: U1Config, seed: int = 0, skip: str = "none") -> Adapter:
        def wanted(path: str) -> bool:
            ours = "_mot_gen" in path or path.startswith("fm_modules.") or path == UNDERSTOOD
            return ours and not path.startswith(skip)

        modules = random_modules(config, wanted, rank=3, alpha=0.2, seed=seed, dtype=torch.float16)
        return Adapter(modules, {NORM: torch.full((config.width,), 1.5)}, strength=0.75)

    return make


def held(session: Session) -> dict[str, torch.Tensor]:
    """Every weight that the session computes with, by its checkpoint name, copied."""
    generation, understanding = session.base_generation, session.understanding
    towers = ((GENERATION, generation), (UNDERSTANDING, understanding))
    pairs = (
        layer_slices(session.config, name, index, tower.layers[index]) for name, tower in towers for index in (2, 0, 1)
    )
    layers = {name: tensor.clone() for name, tensor in itertools.chain.from_iterable(pairs)}
    ends = {
        NORM: generation.norm,
        **generation.modules,
        **understanding.vision,
        EMBED_TOKENS: understanding.embed_tokens,
    }
    return layers | {name: tensor.clone() for name, tensor in ends.items()}


def differing(found: dict[str, torch.Tensor], model: Snapshot) -> list[str]:
    return [name for name, tensor in found.items() if not torch.equal(tensor, model.read(name))]


@pytest.mark.parametrize("placement", [RESIDENT, STREAMED, SOME], ids=["resident", "streamed", "some of each"])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_merged_and_unfolded_is_the_checkpoint(models, tmp_path, kind, placement, lora):
    original = Snapshot.open(models[kind])
    first, second = lora(original.config), lora(original.config, seed=1)
    merge_loras(original, [first, second], tmp_path / "both")
    merge_loras(original, [second], tmp_path / "second")
    session = Session.open(models[kind], "cpu", "bf16", placement=placement)
    assert differing(held(session), original) == []
    session.fold([first, second])
    assert differing(held(session), Snapshot.open(tmp_path / "both")) == []
    assert len(differing(held(session), original)) == len(first.modules) + 1
    session.fold([second])
    assert differing(held(session), Snapshot.open(tmp_path / "second")) == []
    session.unfold()
    assert session.folded == ()
    assert differing(held(session), original) == []


@pytest.mark.parametrize("kind", ["u1", "a3b"])
def test_folded_before_the_towers_are_read(models, tmp_path, kind, lora):
    session = Session.open(models[kind], "cpu", "bf16", placement=SOME)
    adapter = lora(session.config)
    session.fold([adapter])
    merge_loras(session.snapshot, [adapter], tmp_path / "merged")
    assert differing(held(session), Snapshot.open(tmp_path / "merged")) == []
    session.unfold()
    assert differing(held(session), session.snapshot) == []


def test_in_another_dtype_it_is_a_merge_to_that(models, tmp_path, lora):
    session = Session.open(models["u1"], "cpu", "fp32")
    adapter = lora(session.config)
    session.fold([adapter])
    merge_loras(session.snapshot, [adapter], tmp_path / "same", torch.float32)
    assert differing(held(session), Snapshot.open(tmp_path / "same")) == []
    merge_loras(session.snapshot, [adapter], tmp_path / "checkpoint's")
    assert differing(held(session), Snapshot.open(tmp_path / "checkpoint's"))


def test_a_tower_that_is_read_as_it_is_used(models, tmp_path, monkeypatch, lora):
    """Not in memory at all, and with a layer read ahead when the LoRA comes."""
    session = Session.open(models["u1"], "cpu", "bf16")
    monkeypatch.setattr(session, "_room_bytes", lambda: 0)
    adapter = lora(session.config)
    session.understanding.layers[0], session.base_generation.layers[0]
    session.fold([adapter])
    merge_loras(session.snapshot, [adapter], tmp_path / "merged")
    for layers, tower in ((session.understanding.layers, UNDERSTANDING), (session.base_generation.layers, GENERATION)):
        found = dict(layer_slices(session.config, tower, 1, layers[1]))
        assert differing(found, Snapshot.open(tmp_path / "merged")) == []


def test_a_skip_list_leaves_modules_as_they_were(models, lora):
    session = Session.open(models["u1"], "cpu", "bf16")
    session.fold([lora(session.config, skip="fm_modules.fm_head")])
    changed = differing(held(session), session.snapshot)
    assert not any(name.startswith("fm_modules.fm_head") for name in changed)
    assert "fm_modules.timestep_embedder.mlp.0.weight" in changed


def test_a_folded_model_draws_what_the_merged_one_does(models, tmp_path, lora):
    session = Session.open(models["u1"], "cpu", "bf16")
    adapter = lora(session.config)
    plain = text_to_image(session, "a fox", SETTINGS).pictures
    session.fold([adapter])
    merge_loras(session.snapshot, [adapter], tmp_path / "merged")
    merged = text_to_image(Session.open(tmp_path / "merged", "cpu", "bf16"), "a fox", SETTINGS).pictures
    assert torch.equal(text_to_image(session, "a fox", SETTINGS).pictures, merged)
    assert (merged - plain).abs().max() > 0.01
    session.unfold()
    assert torch.equal(text_to_image(session, "a fox", SETTINGS).pictures, plain)


def test_what_is_folded_already_is_not_read_again(models, monkeypatch, lora):
    session = Session.open(models["u1"], "cpu", "bf16", placement=STREAMED)
    adapter = lora(session.config)
    assert session.base_generation.layers.pinned == frozenset()
    reads, read_into = [], Snapshot.read_into
    monkeypatch.setattr(
        Snapshot, "read_into", lambda self, name, place: (reads.append(name), read_into(self, name, place))
    )
    session.fold([adapter])
    assert len(set(reads)) == len(reads) == len([path for path in adapter.modules if path != UNDERSTOOD]) + 1
    session.fold([adapter])
    assert len(set(reads)) == len(reads)
    adapter.strength = 0.5
    session.fold([adapter])
    assert len(reads) == 2 * len(set(reads))


def test_training_and_folding_exclude_each_other(models, lora):
    session = Session.open(models["u1"], "cpu", "bf16")
    adapter = lora(session.config)
    with session.unfolded():
        with pytest.raises(U1Error, match="a run is training on these weights, so no LoRA can be folded into them"):
            session.fold([adapter])
        session.unfold()
    session.fold([adapter])
    with pytest.raises(U1Error, match=r"training needs the checkpoint's own; unfold them"), session.unfolded():
        pass
    session.unfold()
    with session.unfolded():
        pass


def test_the_lease_is_waited_for(models, lora):
    session = Session.open(models["u1"], "cpu", "bf16")
    worker = threading.Thread(target=lambda: session.fold([lora(session.config)]))
    with session.lease:
        worker.start()
        worker.join(0.1)
        assert session.folded == ()
    worker.join()
    assert len(session.folded) == 1


def test_a_failure_midway_leaves_the_model_as_it_was(models, monkeypatch, lora):
    session = Session.open(models["u1"], "cpu", "bf16", placement=STREAMED)
    held(session)
    broken = lora(session.config)
    broken.modules["fm_modules.fm_head.0"].up.fill_(float("inf"))
    with pytest.raises(U1Error, match=r"fm_head\.0\.weight does not fit into bfloat16"):
        session.fold([broken])
    assert session.folded == ()
    assert differing(held(session), session.snapshot) == []


def test_slots_are_let_go_of_only_when_nothing_is_under_way(models, monkeypatch, lora):
    session = Session.open(models["u1"], "cpu", "bf16", placement=STREAMED)
    layers, order = session.base_generation.layers, []
    assert isinstance(layers, ring.StreamedLayers)
    layers[0]
    monkeypatch.setattr(layers._copies, "close", lambda: order.append("settled"))
    monkeypatch.setattr(layers._arena, "rewrite", lambda *_: order.append("written"))
    session.fold([lora(session.config)])
    assert order == ["settled", "written"]


def test_what_cannot_be_folded(models, lora):
    session = Session.open(models["u1"], "cpu", "bf16")
    table = Adapter({}, {EMBED_TOKENS: torch.zeros(session.config.vocab_size, session.config.width)}, name="big.st")
    with pytest.raises(
        U1Error, match=r"big\.st: language_model.model.embed_tokens.weight cannot be changed in a model"
    ):
        session.fold([table])
    with pytest.raises(U1Error, match="this LoRA is for U1"):
        session.fold([Adapter(lora(session.config).modules, kinds=frozenset({"u1.5"}))])
