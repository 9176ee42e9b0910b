"""The names that tensors have in LoRA files of the forms in use, and what they are in the model's own terms."""

import re
from dataclasses import dataclass

ROOTS = ("fm_modules.", "language_model.", "vision_model.")
"""How every tensor's name in a checkpoint begins."""

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
"""What programs put before the model's names: PEFT, ComfyUI, diffusers."""

_SIDES = {
    "lora_down": ("down", "lora_down/lora_up"),
    "lora_up": ("up", "lora_down/lora_up"),
    "lora_A": ("down", "lora_A/lora_B"),
    "lora_B": ("up", "lora_A/lora_B"),
    # As diffusers wrote them before it had PEFT.
    "lora.down": ("down", "lora.down/lora.up"),
    "lora.up": ("up", "lora.down/lora.up"),
}
# PEFT may put the adapter's name between: `….lora_A.default.weight`.
_TERM = re.compile(
    r"(?P<module>.+)\.(?P<side>lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)"
    r"(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?"
)
_OTHER_METHODS = (
    (re.compile(r"\.(?:lora_magnitude_vector|dora_scale|magnitude)\b"), "DoRA"),
    (re.compile(r"\.lora_(?:B|up)\.(?:.+\.)?bias$"), "LoRA with biases (PEFT's lora_bias)"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
)
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
    (re.compile(r"fm_modules_fm_head_(\d|conv\d)"), r"fm_modules.fm_head.\1"),
    (re.compile(r"fm_modules_(timestep|noise_scale)_embedder_mlp_(\d)"), r"fm_modules.\1_embedder.mlp.\2"),
    (re.compile(r"vision_model_embeddings_(patch|dense)_embedding"), r"vision_model.embeddings.\1_embedding"),
    (
        re.compile(r"fm_modules_vision_model_mot_gen_embeddings_(patch|dense)_embedding"),
        r"fm_modules.vision_model_mot_gen.embeddings.\1_embedding",
    ),
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
    """ "lora_down/lora_up", "lora_A/lora_B" or "lora.down/lora.up" for the two sides of a term."""


def parse_key(key: str) -> LoraKey | None:
    """Read one tensor's name; None if it belongs to no form known here."""
    prefix, rest = _split_prefix(key)
    if term := _TERM.fullmatch(rest):
        part, naming = _SIDES[term["side"]]
        return _in_model(term["module"], part, prefix, naming)
    if rest.endswith(".alpha"):
        return _in_model(rest.removesuffix(".alpha"), "alpha", prefix)
    # No tensor of a checkpoint has "lora" in its name: that would be a part of a form not known here.
    if rest.endswith((".weight", ".bias")) and ".lora" not in rest and prefix != "lora_unet_":
        return _in_model(_WRAPPED.sub(r"\1", rest), "full", prefix)
    return None


def other_method(key: str) -> str | None:
    """What a tensor's name says was trained instead of a plain LoRA; None if it says nothing that is known here."""
    return next((method for sign, method in _OTHER_METHODS if sign.search(key)), None)


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
