"""Whether the paged 8-bit AdamW of bitsandbytes can be had here: tried with a step, as it may be there and not work."""

import functools
import importlib
import importlib.util

import torch


@functools.cache
@torch.inference_mode(False)  # whatever the caller is about, the step has gradients
def why_not(device: torch.device) -> str:
    """What keeps 8-bit AdamW from being used on `device`, or nothing.

    The first answer for a card takes as long as the package takes to import: seconds.
    """
    if device.type != "cuda":
        return f"the device is {device.type}"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    try:
        package = importlib.import_module("bitsandbytes")
        parameter = torch.ones(8192, device=device, requires_grad=True)
        parameter.grad = torch.ones_like(parameter)
        package.optim.PagedAdamW8bit([parameter], lr=0.5).step()
        moved = (parameter < 1).all().item()
    except torch.OutOfMemoryError:
        raise  # which says nothing about the package
    except Exception as problem:  # whatever a package without its library may raise
        return f"bitsandbytes does not work: {str(problem).strip().splitlines()[-1]}"
    return "" if moved else "a step of bitsandbytes changes nothing"
