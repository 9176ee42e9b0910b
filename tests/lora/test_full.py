from pathlib import Path

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.full import with_full_tensors
from u1_core.lora.plan import FINAL_NORM
from u1_core.model.views import Generation

BIAS, OTHER = "fm_modules.fm_head.0.bias", "fm_modules.fm_head.2.bias"


def _base():
    modules = {BIAS: torch.tensor([1.0, 2.0]).bfloat16(), OTHER: torch.tensor([5.0])}
    return Generation(layers=(), norm=torch.ones(2), modules=modules)


def test_strength_moves_from_the_base_to_the_trained_tensor_and_beyond():
    base, adapter = _base(), Adapter({}, full={BIAS: torch.tensor([3.0, 2.5]), FINAL_NORM: torch.tensor([0.0, 2.0])})
    for strength, bias, norm in ((1.0, [3.0, 2.5], [0, 2]), (0.5, [2.0, 2.25], [0.5, 1.5]), (-1.0, [-1, 1.5], [2, 0])):
        adapter.strength = strength
        changed = with_full_tensors(base, [adapter])
        assert changed.modules[BIAS].tolist() == bias
        assert changed.modules[BIAS].dtype == torch.bfloat16
        assert changed.norm.tolist() == norm
        assert changed.modules[OTHER] is base.modules[OTHER]
    adapter.strength = 0.0
    assert with_full_tensors(base, [adapter]).modules[BIAS] is base.modules[BIAS]
    assert base.modules[BIAS].tolist() == [1.0, 2.0]


def test_several_add_their_differences():
    first, second = (Adapter({}, full={OTHER: torch.tensor([value])}) for value in (6.0, 9.0))
    assert with_full_tensors(_base(), [first, second]).modules[OTHER].item() == 5 + 1 + 4


def test_the_same_file_twice_is_refused():
    full = {OTHER: torch.tensor([6.0])}
    twice = [Adapter({}, full=full, full_source=Path("style.full.safetensors")) for _ in range(2)]
    with pytest.raises(U1Error, match=r"style\.full\.safetensors: is used twice"):
        with_full_tensors(_base(), twice)


def test_strength_one_gives_the_trained_tensor_itself():
    generator = torch.Generator().manual_seed(0)
    base, trained = (torch.randn(1000, generator=generator) for _ in range(2))
    weights = Generation(layers=(), norm=base, modules={})
    assert torch.equal(with_full_tensors(weights, [Adapter({}, full={FINAL_NORM: trained})]).norm, trained)
