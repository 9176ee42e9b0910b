"""The weights that an adapter changes, in place of the base's: tensors trained whole, and small modules' terms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, takes_terms
from u1_core.lora.plan import FINAL_NORM
from u1_core.model.views import Generation


def with_full_tensors(base: Generation, adapters: Sequence[Adapter]) -> Generation:
    """`base` with strength * (full - base) of every adapter added to the tensors they replace, and strength * delta to
    the weights of modules that take no terms; `base` is left as it is.

    The sum is fp32 and rounded once to the base's dtype. Raises U1Error if two adapters brought the same file.
    """
    refuse_twice(adapters)
    originals = {**base.modules, FINAL_NORM: base.norm}
    changed: dict[str, Tensor] = {}
    for adapter in adapters:
        if adapter.strength == 0:
            continue
        for name, full in adapter.full.items():
            changed[name] = toward_full(changed.get(name), originals[name], full, adapter.strength)
        for path, module in adapter.modules.items():
            if not takes_terms(path):
                name = f"{path}.weight"
                delta = module.delta().view(originals[name].shape).to(originals[name].device)
                changed[name] = changed.get(name, originals[name]).float() + adapter.strength * delta
    return with_trained_tensors(base, changed)


def with_trained_tensors(base: Generation, trained: Mapping[str, Tensor]) -> Generation:
    """`base` with these tensors, by checkpoint name, in place of its own and in their dtype; gradients flow through."""
    originals = {**base.modules, FINAL_NORM: base.norm}
    cast = {name: tensor.to(originals[name].dtype) for name, tensor in trained.items()}
    norm = cast.pop(FINAL_NORM, base.norm)
    return replace(base, norm=norm, modules={**base.modules, **cast})


def refuse_twice(adapters: Sequence[Adapter]) -> None:
    """Raise U1Error if two adapters brought fully trained tensors from the same file."""
    sources = [adapter.full_source for adapter in adapters if adapter.full_source]
    if twice := [source for source, count in Counter(sources).items() if count > 1]:
        raise U1Error(f"{twice[0]}: is used twice; a LoRA brings its fully trained tensors along, so name it alone")


def toward_full(so_far: Tensor | None, base: Tensor, full: Tensor, strength: float) -> Tensor:
    """`so_far`, or `base` where that is None, plus strength * (full - base), in fp32."""
    base, full = base.float(), full.to(base.device).float()
    # At strength 1 lerp gives `full` itself; a sum would come back to it only up to rounding.
    return torch.lerp(base, full, strength) if so_far is None else so_far + strength * (full - base)
