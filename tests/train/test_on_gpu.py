"""The same bytes on a card: twice, and killed and resumed, with the optimizers that a card can have."""

import importlib.util
from pathlib import Path

import pytest
import torch

from u1_core.train.checkpoint import read_state, state_files
from u1_core.train.optimizers import make_optimizer, restore_state
from u1_core.train.recipe import Train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA card here")
STEPS = 24


def with_package(optimizer):
    if optimizer == "paged_adamw8bit":
        pytest.importorskip("bitsandbytes", reason="NOT TESTED: bitsandbytes is not installed")
    return optimizer


@pytest.fixture
def script():
    path = Path(__file__).resolve().parents[1] / "kill_and_resume.py"
    spec = importlib.util.spec_from_file_location("kill_and_resume", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["paged_adamw8bit", "adamw"])
def test_killed_and_resumed_and_once_more_it_is_the_same(tmp_path, script, optimizer):
    with_package(optimizer)
    assert script.kill_and_resume(tmp_path, 2, STEPS, 4, seed=1, device="cuda", optimizer=optimizer) >= 1
    script.wait(script.start(tmp_path / "recipe.yaml", tmp_path / "again", resume=False))
    for name in script.RESULTS:
        again, whole = (tmp_path / out / "tiny" / name for out in ("again", "whole"))
        assert again.read_bytes() == whole.read_bytes()
    tensors = _tensors(read_state(state_files(tmp_path / "whole" / "tiny" / "checkpoints")[0]).optimizer)
    assert any(tensor.dtype == torch.uint8 for tensor in tensors) == (optimizer == "paged_adamw8bit")


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def test_paged_states_are_paged_again_and_go_on_alike():
    with_package("paged_adamw8bit")
    device, numbers = torch.device("cuda"), torch.Generator().manual_seed(0)
    start = torch.randn(512, 512, generator=numbers)
    gradients = [torch.randn(512, 512, generator=numbers).to(device) for _ in range(4)]

    def optimizer_of(values):
        leaf = values.detach().clone().to(device).requires_grad_()
        groups = [{"params": [leaf], "lr": 1e-2, "base_lr": 1e-2}]
        return leaf, make_optimizer(Train(optimizer="paged_adamw8bit"), groups, device)[0]

    def step(leaf, optimizer, gradient):
        leaf.grad.copy_(gradient)
        optimizer.step()

    def states(optimizer):
        return [values[name] for values in optimizer.state.values() for name in ("state1", "state2")]

    leaf, optimizer = optimizer_of(start)
    for gradient in gradients[:2]:
        step(leaf, optimizer, gradient)
    assert [state.is_paged for state in states(optimizer)] == [True, True]
    other_leaf, other = optimizer_of(leaf)
    restore_state(other, optimizer.state_dict())
    assert [state.is_paged for state in states(other)] == [True, True]
    restore_state(other, optimizer.state_dict())  # into what is there already
    for gradient in gradients[2:]:
        step(leaf, optimizer, gradient)
        step(other_leaf, other, gradient)
    assert torch.equal(leaf, other_leaf)
    assert all(torch.equal(*pair) for pair in zip(states(optimizer), states(other), strict=True))
