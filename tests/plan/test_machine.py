"""Figures are measured once for each machine and work, and kept."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from u1_core.lora.plan import plan_lora
from u1_core.plan import machine as module
from u1_core.plan.machine import bus_to, costs_on, host_free_bytes, machine_key, model_here
from u1_core.plan.work import TrainingWork

CARD = torch.device("cuda")
GIB = 2**30


@pytest.fixture
def card(monkeypatch, tmp_path, training) -> SimpleNamespace:
    """A card that is asked for its figures, and counts how often."""
    asked = SimpleNamespace(works=[], copies=0, name="Card 9000")

    def measured(work, device):
        asked.works.append(work)
        return training().costs

    def copied(device):
        asked.copies += 1
        return [50e9, 10e9]

    monkeypatch.setenv("U1_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "_measure_copies", copied)
    monkeypatch.setattr(module, "machine_key", lambda device: asked.name)
    return asked


@pytest.fixture
def work(tiny) -> TrainingWork:
    config = tiny("u1").config
    return TrainingWork(
        config=config,
        dtype=torch.bfloat16,
        width=64,
        height=64,
        prefix_tokens=100,
        modules=plan_lora(config, "attn=r2").modules,
        optimizer="adamw",
        make_optimizer=torch.optim.AdamW,
    )


def test_what_is_measured_is_kept_to_the_bit(card, work, training):
    first, second = costs_on(CARD, work), costs_on(CARD, work)
    assert first == second == training().costs
    assert len(card.works) == 1
    assert bus_to(CARD) == bus_to(CARD)
    assert card.copies == 1
    assert (bus_to(CARD).pinned_rate, bus_to(CARD).pageable_rate) == (50e9, 10e9)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 128},
        {"batch": 2},
        {"prefix_tokens": 129},
        {"optimizer": "adafactor"},
        {"whole": ("language_model.model.norm_mot_gen.weight",)},
        {"dropout": 0.1},
        {"dtype": torch.float32},
    ],
)
def test_other_work_is_measured_anew(card, work, change):
    costs_on(CARD, work)
    costs_on(CARD, replace(work, **change))
    assert len(card.works) == 2


def test_work_that_costs_the_same_is_not(card, work):
    costs_on(CARD, work)
    costs_on(CARD, replace(work, prefix_tokens=128, micro_batches=4, held_bytes=7, averaged=True))
    assert len(card.works) == 1
    assert card.works[0].prefix_tokens == 128  # rounded up


def test_another_machine_is_measured_anew(card, work):
    costs_on(CARD, work)
    card.name = "Card 9001"
    costs_on(CARD, work)
    assert len(card.works) == 2


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 200_000], ids=["empty", "cut off", "a list", "nested"])
def test_a_cache_that_is_not_whole_is_made_anew(card, work, tmp_path, text, training):
    (tmp_path / "measured.json").write_text(text, encoding="utf-8")
    assert costs_on(CARD, work) == training().costs
    assert costs_on(CARD, work) == training().costs
    assert len(card.works) == 1


def test_a_folder_that_cannot_be_written_costs_only_time(card, work, monkeypatch, tmp_path, caplog, training):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("U1_CACHE", str(tmp_path / "file"))
    assert costs_on(CARD, work) == training().costs
    assert "measured figures are not kept" in caplog.text


def test_a_model_of_this_machine(card, work, monkeypatch):
    monkeypatch.setattr(module, "host_memory_bytes", lambda: 32 * GIB)
    model = model_here(CARD, work)
    assert model.host_free_bytes == host_free_bytes() == 24 * GIB
    assert model.fixed_bytes == work.still_bytes
    assert (model.layers, model.micro_batches, model.trains) == (3, 1, True)
    assert 3 * model.layer_gradient_bytes + model.ends_gradient_bytes == 4 * work.trained


def test_a_machine_is_its_card_driver_torch_allocator_and_our_code(monkeypatch):
    about = SimpleNamespace(name="Card 9000", total_memory=8 * GIB)
    cuda = SimpleNamespace(get_device_properties=lambda device: about, get_allocator_backend=lambda: "native")
    monkeypatch.setattr(module.torch, "cuda", cuda)
    monkeypatch.setattr(module, "driver_version", lambda: 13000)
    machine_key.cache_clear()
    key = machine_key(torch.device("cuda:7"))
    machine_key.cache_clear()
    assert key.startswith(f"Card 9000, {8 * GIB}, CUDA 13000, torch {torch.__version__}, native, ")
    assert len(key.rpartition(", ")[2]) == 16
