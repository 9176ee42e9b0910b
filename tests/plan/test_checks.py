"""What there is to know of a machine without a card, and of parts that do not work."""

import math
from types import SimpleNamespace

import pytest
import torch

from u1_core.plan import checks as module
from u1_core.plan.checks import Finding, comfyui_folder, look


def page(**options) -> dict[str, Finding]:
    return {finding.name: finding for finding in look(torch.device("cpu"), **options)}


def test_a_machine_without_a_card(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    found = page()
    assert found["torch"].text.startswith(torch.__version__)
    assert found["card"] == Finding("card", "none that this PyTorch sees: everything runs on the CPU", sound=False)
    assert found["8-bit AdamW"].text == "not used without a card; AdamW takes its place"
    assert found["gradients"].sound
    assert found["gradients"].text.endswith("; a tiny model, as there is no card")
    assert "page-locking" not in found


def test_quick_leaves_the_gradients_out():
    assert "gradients" not in page(gradients=False)


def test_a_package_that_is_missing_says_how_to_get_it(monkeypatch, untried):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert page(gradients=False)["gguf"].text == "not installed; `pip install gguf` for quantised bases"
    found = next(module._optional_packages(torch.device("cuda", 1)))
    assert found == Finding(
        "8-bit AdamW", "not used, which takes more memory: bitsandbytes is not installed", sound=False
    )


def test_the_8_bit_optimizer_is_tried_on_the_card_that_is_asked_about(monkeypatch):
    asked = []
    monkeypatch.setattr(module.eight_bit, "why_not", lambda device: asked.append(device) or "it is busy")
    assert next(module._optional_packages(torch.device("cuda", 1))).text.endswith("more memory: it is busy")
    assert asked == [torch.device("cuda", 1)]


def test_attention_names_what_works_and_its_time(monkeypatch):
    timed = [("CUDNN", 0.0005), ("FLASH", 0.00125), ("EFFICIENT", math.inf), ("MATH", math.inf)]
    found = [(SimpleNamespace(name=f"{name}_ATTENTION"), seconds) for name, seconds in timed]
    monkeypatch.setattr(module.attention, "backends", lambda *about, backward: found[2 * backward :])
    words = "forward: cudnn 0.50 ms, flash 1.25 ms; with backward: plain products only"
    assert module._attention(torch.device("cuda")).text == words


def test_a_card_that_is_full_is_no_fault_of_what_was_to_be_tried_on_it():
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    told = Finding("copies", "not tried: the card has no memory left for that", sound=False)
    assert module._tried("copies", full, torch.device("cuda")) == told


@pytest.mark.parametrize(
    ("granted", "text", "sound"),
    [
        (99, "15.09 GiB tried, all of it granted", True),
        (2, "refused after 0.72 GiB; the rest is copied in stages, more slowly", False),
    ],
)
def test_page_locking_is_tried_until_it_is_refused(monkeypatch, granted, text, sound):
    locked = []

    class Arena:
        layers = range(42)

        def __init__(self, *about):
            pass

        def layer_bytes(self, index):
            return 386 * 10**6

        def pin(self, index):
            locked.append(index)
            return len(locked) <= granted

        def close(self):
            locked.append("closed")

    monkeypatch.setattr(module, "Arena", Arena)
    monkeypatch.setattr(module, "pin_limit_bytes", lambda: 64 * 2**30)
    found = module._pinning(torch.device("cuda"))
    assert (found.text.replace("15.10", "15.09"), found.sound) == (text, sound)
    assert locked[-1] == "closed"


def test_a_card_without_bf16_is_told(monkeypatch):
    cuda = SimpleNamespace(
        get_device_capability=lambda device: (7, 5),
        is_bf16_supported=lambda including_emulation: False,
        get_allocator_backend=lambda: "native",
    )
    monkeypatch.setattr(module, "driver_version", lambda: 12080)
    monkeypatch.setattr(module.torch, "cuda", cuda)
    assert module._driver(torch.device("cuda")) == Finding(
        "driver",
        "knows CUDA 12.8; the card is of compute capability 7.5, which has no bf16: everything will be slow; allocator "
        "native",
        sound=False,
    )


def test_comfyui_is_found_where_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.Path, "home", lambda: tmp_path)
    assert comfyui_folder() is None
    (tmp_path / "comfy").mkdir()
    (tmp_path / "nodes.py").write_text("", encoding="utf-8")
    assert comfyui_folder() == tmp_path
