"""What a prompt's K/V depends on, as short texts by which it is found again."""

import hashlib
from collections.abc import Iterable, Sequence

import torch

from u1_core.lora.adapter import Adapter, tower_of
from u1_core.model.config import UNDERSTANDING
from u1_core.text.sequence import TokenSequence


def salt(fingerprint: str, dtype: torch.dtype, device: torch.device, adapters: Sequence[Adapter]) -> str:
    """All but the prompts: the model by its fingerprint, the numbers it is computed in and by, and the LoRAs.

    Of the LoRAs only what they change in the understanding tower counts.
    """
    digest = hashlib.blake2b(f"{fingerprint} {dtype} {_machine(device)}".encode(), digest_size=16)
    for adapter in adapters:
        for path, module in sorted(adapter.modules.items()):
            if adapter.strength and tower_of(path) == UNDERSTANDING:
                digest.update(f"{path} {module.alpha} {adapter.strength}".encode())
                digest.update(_bytes_of(module.down) + _bytes_of(module.up))
        for name, tensor in sorted(adapter.full.items()):
            if adapter.strength and tower_of(name) == UNDERSTANDING:
                digest.update(f"{name} {adapter.strength}".encode() + _bytes_of(tensor))
    return digest.hexdigest()


def key(salt: str, head: Sequence[int], sequences: Iterable[TokenSequence] = ()) -> str:
    """Of prompts that are built together and share `head`; of the head itself if there are none."""
    digest = hashlib.blake2b(f"{salt} {list(head)}\n".encode(), digest_size=16)
    for sequence in sequences:
        digest.update(f"{sequence.ids.tolist()}\n".encode())
    return digest.hexdigest()


def _machine(device: torch.device) -> str:
    """What rounds as this does: another card, another PyTorch or another number of threads may not."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()} threads"
    return f"{name} torch {torch.__version__}"


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()
