"""Optimizers by name, groups of weights with a learning rate each, and words that say what was taken and why."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.plan import eight_bit
from u1_core.train.one_piece import OnePiece
from u1_core.train.recipe import Train

BETAS = (0.9, 0.95)
"""As the reference trainer has them."""

_SMALLEST_8BIT = 4096
"""Numbers in the smallest tensor whose optimizer state is 8-bit."""

_PACKAGES = {"prodigy": "prodigyopt", "schedule_free": "schedulefree"}
"""Optimizer -> the optional package that it is of."""

Group = dict[str, Any]


def parameter_groups(train: Train, adapter: Adapter) -> list[Group]:
    """down, up and the tensors trained whole, each with its learning rate; those that there are none of left out.

    `base_lr` is the rate that the schedule multiplies. LoRA+: up's is `lora_plus` times down's (arXiv 2402.12354).
    """
    modules = adapter.modules.values()
    groups = [
        ([module.down for module in modules], train.lr),
        ([module.up for module in modules], train.lr * train.lora_plus),
        (list(adapter.full.values()), train.lr_full or train.lr),
    ]
    return [{"params": tensors, "lr": lr, "base_lr": lr} for tensors, lr in groups if tensors]


def make_optimizer(train: Train, groups: Sequence[Group], device: torch.device) -> tuple[torch.optim.Optimizer, str]:
    """An optimizer over fp32 parameters on `device`, and a line for the log.

    Raises U1Error as `resolve_optimizer`.
    """
    name = resolve_optimizer(train.optimizer, device)
    optimizer, words = _MAKERS[name](groups, train.weight_decay)
    if name == "adamw" and device.type == "cuda" and (why_not := eight_bit.why_not(device)):
        words += f" (not the paged 8-bit one: {why_not})"
    return optimizer, words


def resolve_optimizer(name: str, device: torch.device) -> str:
    """`name`, or what "auto" means here: paged 8-bit AdamW on CUDA where bitsandbytes works, else AdamW.

    Raises U1Error for one whose package is not installed, or that the device cannot have. May import that package.
    """
    if name == "auto":
        return "adamw" if eight_bit.why_not(device) else "paged_adamw8bit"
    if name == "paged_adamw8bit" and (why_not := eight_bit.why_not(device)):
        raise U1Error(f"train.optimizer is {name}, but {why_not}; use adamw or auto")
    if name in _PACKAGES:
        _package(name)
    return name


def averaged_weights(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a schedule-free optimizer means to be used; the parameters stay as they are, to the bit."""
    before = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    optimizer.eval()
    averaged = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    optimizer.train()
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(before[name])
    return averaged


def restore_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Become what `state_dict` gave. A paged optimizer's states go back where the driver may page them out.

    Its own loading would leave them in the card's memory for good.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(dict(state))
        return
    before = {parameter: dict(values) for parameter, values in optimizer.state.items()}
    optimizer.load_state_dict(dict(state), move_to_device=False)
    for parameter, values in optimizer.state.items():
        for name in ("state1", "state2"):
            held = before.get(parameter, {}).get(name)
            held = optimizer.get_state_buffer(parameter, values[name].dtype) if held is None else held
            values[name] = held.copy_(values[name])
    optimizer.to_gpu()


def _adamw(groups: Sequence[Group], weight_decay: float) -> tuple[torch.optim.Optimizer, str]:
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=weight_decay, fused=True), "AdamW, fused"


def _paged_adamw8bit(groups: Sequence[Group], weight_decay: float) -> tuple[torch.optim.Optimizer, str]:
    import bitsandbytes

    pieces, gathered = [], []
    for group in groups:
        # Smaller ones have 32-bit states, by the package's own rule.
        large = [leaf for leaf in group["params"] if leaf.numel() >= _SMALLEST_8BIT]
        small = [leaf for leaf in group["params"] if leaf.numel() < _SMALLEST_8BIT]
        made = [OnePiece(large)] if large else []
        pieces += made
        gathered.append({**group, "params": [*(piece.parameter for piece in made), *small]})
    optimizer = bitsandbytes.optim.PagedAdamW8bit(
        gathered, betas=BETAS, weight_decay=weight_decay, min_8bit_size=_SMALLEST_8BIT
    )
    _zero_in_place(optimizer, pieces)
    return optimizer, f"paged 8-bit AdamW of bitsandbytes {bitsandbytes.__version__}"


def _zero_in_place(optimizer: torch.optim.Optimizer, pieces: Sequence[OnePiece]) -> None:
    """Have `zero_grad` leave the pieces' gradients where they are."""
    plainly = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        held = [piece.parameter.grad for piece in pieces]
        plainly(set_to_none)
        for piece, gradient in zip(pieces, held, strict=True):
            piece.parameter.grad = gradient
            piece.zero_grad()

    optimizer.zero_grad = zero_grad


def _adafactor(groups: Sequence[Group], weight_decay: float) -> tuple[torch.optim.Optimizer, str]:
    return torch.optim.Adafactor(groups, weight_decay=weight_decay), "Adafactor"


def _prodigy(groups: Sequence[Group], weight_decay: float) -> tuple[torch.optim.Optimizer, str]:
    package = _package("prodigy")
    one = [{**groups[0], "params": [tensor for group in groups for tensor in group["params"]]}]
    return package.Prodigy(one, betas=BETAS, weight_decay=weight_decay), "Prodigy"


def _schedule_free(groups: Sequence[Group], weight_decay: float) -> tuple[torch.optim.Optimizer, str]:
    package = _package("schedule_free")
    optimizer = package.AdamWScheduleFree(groups, betas=BETAS, weight_decay=weight_decay, foreach=False)
    optimizer.train()
    return optimizer, "schedule-free AdamW"


_MAKERS: dict[str, Callable[[Sequence[Group], float], tuple[torch.optim.Optimizer, str]]] = {
    "adamw": _adamw,
    "paged_adamw8bit": _paged_adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedule_free": _schedule_free,
}


def _package(name: str) -> ModuleType:
    """The package of the optimizer of this name. Raises U1Error if it is not installed."""
    package = _PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise U1Error(
            f"train.optimizer is {name}, but {package} is not installed; `pip install {package}`, or use adamw"
        ) from None
