"""The names that tensors have in LoRA files of the forms in use, and what they are in the model's own terms."""

import re
from dataclasses import dataclass

ROOTS = ("fm_modules.", "language_model.", "vision_model.")
"""How every tensor's name in a checkpoint begins."""

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
"""What programs put before the model's names: PEFT, ComfyUI, diffusers."""

_SIDES = {"lora_down": "down", "lora_A": "down", "lora_up": "up", "lora_B": "up"}
# PEFT may put the adapter's name between: `….lora_A.default.weight`.
_TERM = re.compile(r"(?P<module>.+)\.(?P<side>lora_down|lora_up|lora_A|lora_B)(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
# The weight under a LoRA, as the reference trainer (`.base`) and PEFT (`.base_layer`) name it when it is trained too.
_WRAPPED = re.compile(r"\.base(?:_layer)?(\.(?:weight|bias))$")
_UNDERSCORED = (
    (
        re.compile(r"language_model_model_layers_(\d+)_self_attn_([qkvo]_proj(?:_mot_gen)?)"),
        r"language_model.model.layers.\1.self_attn.\2",
    ),
    (
        re.compile(r"language_model_model_layers_(\d+)_(mlp(?:_mot_gen)?)_experts_(\d+)_(gate_proj|up_proj|down_proj)"),
        r"language_model.model.layers.\1.\2.experts.\3.\4",
    ),
    (
        re.compile(r"language_model_model_layers_(\d+)_(mlp(?:_mot_gen)?)_(gate_proj|up_proj|down_proj|gate)"),
        r"language_model.model.layers.\1.\2.\3",
    ),
    (re.compile(r"fm_modules_fm_head_(\d)"), r"fm_modules.fm_head.\1"),
    (re.compile(r"fm_modules_(timestep|noise_scale)_embedder_mlp_(\d)"), r"fm_modules.\1_embedder.mlp.\2"),
)


@dataclass(frozen=True)
class LoraKey:
    """What one tensor of a file is."""

    name: str
    """The module's path, or for a full tensor its checkpoint name."""
    part: str
    """ "down", "up", "alpha" or "full"."""
    prefix: str
    """What stood before the model's name."""
    naming: str = ""
    """ "lora_down/lora_up" or "lora_A/lora_B" for the two sides of a term."""


def parse_key(key: str) -> LoraKey | None:
    """Read one tensor's name; None if it belongs to no form known here."""
    prefix, rest = _split_prefix(key)
    if term := _TERM.fullmatch(rest):
        naming = "lora_A/lora_B" if term["side"] in ("lora_A", "lora_B") else "lora_down/lora_up"
        return _in_model(term["module"], _SIDES[term["side"]], prefix, naming)
    if rest.endswith(".alpha"):
        return _in_model(rest.removesuffix(".alpha"), "alpha", prefix)
    if rest.endswith((".weight", ".bias")) and prefix != "lora_unet_":
        return _in_model(_WRAPPED.sub(r"\1", rest), "full", prefix)
    return None


def _split_prefix(key: str) -> tuple[str, str]:
    if key.startswith("lora_unet_"):
        return "lora_unet_", key.removeprefix("lora_unet_")
    rest = key
    while found := next((prefix for prefix in PREFIXES if rest.startswith(prefix)), None):
        rest = rest.removeprefix(found)
    return key.removesuffix(rest), rest


def _in_model(name: str, part: str, prefix: str, naming: str = "") -> LoraKey | None:
    path = _dotted(name) if prefix == "lora_unet_" else name
    return LoraKey(path, part, prefix, naming) if path and path.startswith(ROOTS) else None


def _dotted(name: str) -> str | None:
    """kohya's form writes the path's dots as underscores; only the model's own names tell which was which."""
    for pattern, path in _UNDERSCORED:
        if pattern.fullmatch(name):
            return pattern.sub(path, name)
    return None
