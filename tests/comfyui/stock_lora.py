"""Runs with ComfyUI's Python: load a LoRA the way the stock LoraLoader does.

    python stock_lora.py COMFYUI_DIR LORA MODEL STRENGTH OUT

MODEL is a .safetensors file of weights. They become the parameters of a module under ComfyUI's usual name for a
diffusion model; key mapping, loading and patching are ComfyUI's own. OUT gets the weights after patching.
"""

import sys

comfyui, lora_file, model_file, strength, out = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


class ModelConfig:
    unet_config = {}  # noqa: RUF012


class Model(torch.nn.Module):
    """A module whose parameters carry the checkpoint's names under `diffusion_model.`."""

    model_config = ModelConfig()

    def __init__(self, weights):
        super().__init__()
        self.diffusion_model = torch.nn.Module()
        for name, weight in weights.items():
            *path, leaf = name.split(".")
            module = self.diffusion_model
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(leaf, torch.nn.Parameter(weight, requires_grad=False))


cpu = torch.device("cpu")
patcher = comfy.model_patcher.ModelPatcher(Model(load_file(model_file)), cpu, cpu)
lora = comfy.utils.load_torch_file(lora_file, safe_load=True)
patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, float(strength), 0.0)
patched.patch_model()
weights = {name.removeprefix("diffusion_model."): weight for name, weight in patched.model.state_dict().items()}
save_file({name: weight.contiguous() for name, weight in weights.items()}, out)
