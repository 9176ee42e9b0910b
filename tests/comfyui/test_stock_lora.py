"""A LoRA that we wrote, through ComfyUI's stock loader: every key is used, and adds what it should."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from u1_core.lora.adapter import Adapter
from u1_core.lora.export import fold_full
from u1_core.lora.files import write_lora
from u1_core.lora.plan import DEFAULT_UNFROZEN, plan_lora, select_unfrozen

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


@pytest.mark.parametrize("kind", ["u1", "u1.5"])
def test_tensors_folded_into_a_lora_arrive_too_convolutions_among_them(comfyui, tiny, kind, tmp_path):
    model = tiny(kind)
    generator = torch.Generator().manual_seed(3)
    names = [name for name in select_unfrozen(model.config, DEFAULT_UNFROZEN) if name.endswith(".weight")]
    base = {name: model.source.read(name).float() for name in names}
    full = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    adapter = Adapter({}, full, kinds=frozenset({model.config.kind}))
    folded, _ = fold_full(adapter, model.source.read, rank=5)
    assert {len(base[f"{path}.weight"].shape) for path in folded.modules} == {2, 4}
    write_lora(tmp_path / "ours.safetensors", folded)
    save_file(base, tmp_path / "model.safetensors")

    patched = _load_in_comfyui(comfyui, tmp_path)
    for path, module in folded.modules.items():
        name = f"{path}.weight"
        expected = base[name] + STRENGTH * module.delta().view(base[name].shape)
        torch.testing.assert_close(patched[name], expected, rtol=1e-5, atol=1e-5)
        assert (patched[name] - base[name]).norm() > 0.01 * base[name].norm()


def _load_in_comfyui(comfyui, folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights after ComfyUI has patched them with the LoRA."""
    files = [folder / "ours.safetensors", folder / "model.safetensors", STRENGTH, folder / "patched.safetensors"]
    command = comfyui.command(Path(__file__).with_name("stock_lora.py"), comfyui.folder, *files)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "patched.safetensors")
