import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from u1_core import session as session_module
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.model.config import FM_HEAD, GENERATION, UNDERSTANDING
from u1_core.plan.budget import Budget
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session, choose_device
from u1_core.text.sequence import build_sequence
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.placement import Placement

SETTINGS = SampleSettings(width=32, height=32, steps=2, guidance=Guidance(1.0))


def test_opens_without_reading_weights(models):
    told = []
    session = Session.open(models["u1"], device="cpu", on_progress=lambda done, total: told.append((done, total)))
    assert session.config.kind == "u1"
    assert session.config.head_width == 128  # the weights', not the config's 4096
    assert told == []
    assert len(session.generation.layers) == 3
    assert told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_dtypes_on_the_cpu(models, dtype, expected):
    session = Session.open(models["u1"], device="cpu", dtype=dtype)
    assert session.dtype == expected
    assert session.understanding.norm.dtype == session.generation.layers[0].qkv.dtype == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' is none of auto, cpu, cuda, cuda:N"),
        ({"device": "mps"}, "device 'mps' is none of auto, cpu, cuda, cuda:N"),
        ({"device": "meta"}, "device 'meta' is none of auto, cpu, cuda, cuda:N"),
        ({"device": "cpu", "dtype": "fp16"}, "dtype 'fp16' is none of auto, bf16, fp32"),
        (
            {"device": "cpu", "budget": "8"},
            "budget 8.00 GiB: it is for a card's memory, and the device is cpu; leave it at auto",
        ),
        (
            {"device": "cpu", "budget": "low"},
            "budget low: it is for a card's memory, and the device is cpu; leave it at auto",
        ),
    ],
)
def test_refused(models, options, message):
    with pytest.raises(U1Error) as raised:
        Session.open(models["u1"], **options)
    assert str(raised.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(models, device):
    with pytest.raises(U1Error) as raised:
        Session.open(models["u1"], device=device)
    assert str(raised.value) == f"device {device!r}: this PyTorch sees no CUDA card; use --device cpu"


def test_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(U1Error) as raised:
        choose_device("cuda:2")
    assert str(raised.value) == "device 'cuda:2': this PyTorch sees 2 CUDA card(s), counted from cuda:0"


def test_a_lora_equals_the_merged_model(kind, models, tmp_path, close, random_modules):
    """On both towers, router and experts too: prompts and pictures."""
    session = Session.open(models[kind], device="cpu")
    modules = random_modules(session.config, lambda path: ".layers." in path or ".fm_head." in path, rank=2, alpha=0.05)
    lora = Adapter(modules, strength=0.7)
    folder = shutil.copytree(models[kind], tmp_path / "merged")
    tensors = load_file(folder / "model.safetensors")
    for path, module in lora.modules.items():
        tensors[f"{path}.weight"] += 0.7 * module.alpha / module.rank * module.up @ module.down
    save_file(tensors, folder / "model.safetensors")
    merged = Session.open(folder, device="cpu")

    def last_hidden(one: Session) -> torch.Tensor:
        return one.build_prefixes([build_sequence(one.tokenizer, "a fox in the snow")])[0].last_hidden

    assert {tower for tower in (UNDERSTANDING, GENERATION) if lora.touches(tower)} == {UNDERSTANDING, GENERATION}
    plain_hidden, plain = last_hidden(session), text_to_image(session, "a fox", SETTINGS).pictures
    session.use([lora])
    assert close(last_hidden(session), last_hidden(merged), 3e-6)
    ours = text_to_image(session, "a fox", SETTINGS).pictures
    assert close(ours, text_to_image(merged, "a fox", SETTINGS).pictures, 1e-5)
    assert not close(last_hidden(session), plain_hidden, 1e-3)
    assert not close(ours, plain, 1e-3)


def test_fully_trained_tensors_take_the_bases_place(models, close):
    """At their strength: halfway between the base's and theirs."""
    session = Session.open(models["u1"], device="cpu")
    name = f"{FM_HEAD}.2.bias"
    full = torch.randn(192, generator=torch.Generator().manual_seed(0))
    base = session.base_generation.modules[name].clone()
    session.use([Adapter({}, {name: full}, strength=0.5)])
    assert close(session.generation.modules[name], base + 0.5 * (full - base))
    assert torch.equal(session.base_generation.modules[name], base)
    session.use([])
    assert session.generation.modules[name] is session.base_generation.modules[name]


def test_layers_in_any_placement_draw_the_same_picture(kind, models):
    placements = (None, Placement(frozenset({1}), slots=2), Placement(frozenset(), slots=1))
    sessions = [Session.open(models[kind], "cpu", placement=placement) for placement in placements]
    plain, *streamed = [text_to_image(session, "a fox", SETTINGS).pictures for session in sessions]
    assert all(torch.equal(picture, plain) for picture in streamed)
    assert sessions[1].base_generation.layers.resident == {1}


def test_a_tower_that_is_placed_anew_is_read_anew_and_draws_the_same_picture(models):
    session = Session.open(models["u1"], "cpu")
    before = text_to_image(session, "a fox", SETTINGS).pictures
    tower = session.base_generation
    session.place(Placement(frozenset({1}), slots=2))
    assert session.base_generation is not tower
    streamed = session.base_generation.layers
    assert streamed.resident == {1}
    assert torch.equal(text_to_image(session, "a fox", SETTINGS).pictures, before)
    session.place(Placement(frozenset({1}), slots=2))
    assert session.base_generation.layers is streamed
    session.place(Placement(frozenset({0, 1, 2})))
    assert streamed.slot_bytes == 0
    assert isinstance(session.base_generation.layers, list)


def test_on_a_cpu_there_is_nothing_to_plan(models):
    session = Session.open(models["u1"], "cpu")
    assert session.plan_training(None) is None
    session.make_room((64, 3, 8192, 8192), branches=3)
    assert isinstance(session.base_generation.layers, list)


def test_a_card_is_planned_for_when_the_tower_is_first_needed_and_when_pictures_are_larger(models, monkeypatch):
    session, asked = Session.open(models["u1"], "cpu"), []
    session.device = torch.device("cuda")  # as far as the choice goes

    def plan(work, loaded, held, already_bytes):
        asked.append((work.width, work.height, work.batch, work.branches, loaded))
        return SimpleNamespace(placement=Placement(frozenset(range(4 - len(asked)))))

    monkeypatch.setattr(session._placing, "plan", plan)
    monkeypatch.setattr(session._placing, "spare_bytes", lambda plan: 1000 - len(asked))
    session.make_room((1, 3, 64, 96))
    session.make_room((1, 3, 32, 32), branches=3)  # less than there is room for
    session.make_room((2, 3, 64, 96), branches=3)
    assert asked == [(96, 64, 1, 2, False), (96, 64, 2, 3, False)]
    with session.unfolded():
        session.make_room((9, 3, 64, 96))  # a run is training: the tower stays
    assert len(asked) == 2


def test_on_a_card_the_tower_is_always_placed_by_a_plan(models, monkeypatch):
    """Even if a run should need it before anybody has placed it."""
    session = Session.open(models["u1"], "cpu")
    plan = SimpleNamespace(placement=Placement(frozenset({2}), slots=2))
    monkeypatch.setattr(session._placing, "plan", lambda work, loaded, held, already_bytes: plan)
    monkeypatch.setattr(session._placing, "spare_bytes", lambda plan: 0)
    monkeypatch.setattr(session_module, "load_generation", lambda source, device, dtype, resident, told: resident)
    session.device = torch.device("cuda")  # as far as the choice goes
    with session.unfolded():
        assert session.base_generation == plan.placement


def test_pictures_that_a_placement_before_a_run_had_room_for_are_planned_for_anew_after_it(models, monkeypatch):
    session, placed = Session.open(models["u1"], "cpu"), [Placement(frozenset({0})), Placement(frozenset({0, 1, 2}))]
    session.device = torch.device("cuda")  # as far as the choice goes
    plans = iter([*placed, placed[0]])
    monkeypatch.setattr(session._placing, "plan", lambda *args: SimpleNamespace(placement=next(plans)))
    monkeypatch.setattr(session._placing, "spare_bytes", lambda plan: 0)
    session.make_room((4, 3, 128, 128))
    session.plan_training(SimpleNamespace(batch=1, height=64, width=64))
    assert session._placing.placement == placed[1]
    session.make_room((4, 3, 128, 128))
    assert session._placing.placement == placed[0]


def test_what_drawing_leaves_of_the_memory_goes_to_prompts_until_a_run_is_planned(models, monkeypatch):
    session, held = Session.open(models["u1"], "cpu"), []
    layers = LayersOnDisk(session.snapshot, UNDERSTANDING, "cpu", torch.float32)
    monkeypatch.setattr(layers, "hold", held.append)
    session.__dict__["understanding"] = replace(session.understanding, layers=layers)
    session.device = torch.device("cuda")  # as far as the choice goes
    plan = SimpleNamespace(placement=Placement(frozenset()), peak_bytes=5 * 10**9)
    monkeypatch.setattr(session._placing, "plan", lambda *args: plan)
    session._placing.budget = Budget.parse("10GB")
    session.make_room((1, 3, 64, 96))
    assert held == [0, 4 * 10**9]  # a tenth of the budget is kept back
    session.plan_training(SimpleNamespace(batch=1, height=64, width=96))
    assert held[2:] == [0]
    session._placing.budget = Budget.parse("low")
    session.make_room((4, 3, 64, 96))
    assert held[3:] == [0, 0]


def test_what_is_said_has_lm_head_and_layers_on_the_device_as_far_as_there_is_room(models, monkeypatch):
    session, held = Session.open(models["u1"], "cpu"), []
    monkeypatch.setattr(session, "_room_bytes", lambda: 0)
    tower, layers = session.understanding, session.understanding.layers
    assert isinstance(layers, LayersOnDisk)
    monkeypatch.setattr(layers, "hold", held.append)
    monkeypatch.setattr(session._placing, "beside_others", lambda room, own: int(room))
    session.device, head = torch.device("meta"), tower.lm_head.nbytes  # as far as this goes
    assert session.speaking(0) is tower
    kv = 2 * 3 * 2 * 16 * 4  # K and V, layers, heads, their width, fp32
    monkeypatch.setattr(session, "_room_bytes", lambda: head + 7 * kv + 10.5)
    speaking = session.speaking(7)
    assert speaking.lm_head.device.type == "meta"
    assert speaking.layers is layers
    assert held == [0, head + 10, 10]
    plan = SimpleNamespace(placement=Placement(frozenset()))
    monkeypatch.setattr(session._placing, "plan", lambda *args: plan)
    monkeypatch.setattr(session._placing, "spare_bytes", lambda plan: head - 1)
    session.make_room((1, 3, 64, 96))  # now the generation tower has a place, and this is what it leaves
    assert session.speaking(0) is tower
    assert held[3:] == [0, head - 1]


def test_loras_of_another_model_are_refused_and_change_nothing(models):
    session = Session.open(models["u1"], device="cpu")
    path = "language_model.model.layers.0.self_attn.q_proj_mot_gen"
    fits = Adapter({path: LoraModule(torch.zeros(2, 64), torch.zeros(64, 2), 2.0)})
    session.use([fits])
    wide = Adapter({path: LoraModule(torch.zeros(2, 80), torch.zeros(64, 2), 2.0)}, name="wide.safetensors")
    with pytest.raises(U1Error, match=r"wide\.safetensors: this LoRA does not fit the U1 model: .* is 64 x 80"):
        session.use([fits, wide])
    other = Adapter({}, kinds=frozenset({"u1.5"}), kind_reason="its metadata says so", name="other")
    with pytest.raises(U1Error, match=r"other: this LoRA is for U1\.5 \(its metadata says so\) and the model is U1;"):
        session.use([other])
    assert len(session.adapters) == 1


def test_a_generator_is_its_seed(models):
    session = Session.open(models["u1"], device="cpu")
    first, again = (torch.randn(5, generator=session.generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, torch.randn(5, generator=torch.Generator().manual_seed(3)))
