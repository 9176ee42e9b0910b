"""A LoRA that we wrote, through ComfyUI's stock loader: every key is used, and adds what it should."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.plan import plan_lora

STRENGTH = 0.75


@pytest.mark.parametrize(("kind", "spec"), [("u1", "attn=r4a2; mlp=r8; fm_head=r4"), ("u1.5", "attn=r4a2; mlp=r8")])
def test_every_key_is_used_and_adds_alpha_over_rank_up_down(comfyui, tiny, kind, spec, tmp_path):
    model = tiny(kind)
    adapter = Adapter.create(plan_lora(model.config, spec), seed=0)
    for tensor in adapter.parameters():
        tensor.requires_grad_(False).normal_(generator=torch.Generator().manual_seed(1))
    write_lora(tmp_path / "ours.safetensors", adapter)
    weights = {f"{path}.weight": model.source.read(f"{path}.weight") for path in adapter.modules}
    save_file(weights, tmp_path / "model.safetensors")

    patched = _load_in_comfyui(comfyui, tmp_path)
    for path, module in adapter.modules.items():
        name = f"{path}.weight"
        expected = weights[name] + STRENGTH * module.alpha / module.rank * module.up @ module.down
        torch.testing.assert_close(patched[name], expected, rtol=1e-5, atol=1e-5)


def _load_in_comfyui(comfyui, folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights after ComfyUI has patched them with the LoRA."""
    files = [folder / "ours.safetensors", folder / "model.safetensors", STRENGTH, folder / "patched.safetensors"]
    command = comfyui.command(Path(__file__).with_name("stock_lora.py"), comfyui.folder, *files)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "patched.safetensors")
