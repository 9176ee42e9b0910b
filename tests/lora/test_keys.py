import pytest

from u1_core.lora.keys import LoraKey, other_method, parse_key
from u1_core.model.config import EMBED_TOKENS, LM_HEAD, tensor_shapes

Q = "language_model.model.layers.3.self_attn.q_proj_mot_gen"


@pytest.mark.parametrize(
    ("key", "part", "prefix", "naming"),
    [
        (f"{Q}.lora_down.weight", "down", "", "lora_down/lora_up"),
        (f"{Q}.lora_up.weight", "up", "", "lora_down/lora_up"),
        (f"{Q}.alpha", "alpha", "", ""),
        (f"diffusion_model.{Q}.lora_up.weight", "up", "diffusion_model.", "lora_down/lora_up"),
        (f"transformer.{Q}.lora_B.weight", "up", "transformer.", "lora_A/lora_B"),
        (f"{Q}.lora_A.weight", "down", "", "lora_A/lora_B"),
        (f"{Q}.lora_A", "down", "", "lora_A/lora_B"),
        (f"base_model.model.{Q}.lora_A.weight", "down", "base_model.model.", "lora_A/lora_B"),
        (f"base_model.model.{Q}.lora_B.default.weight", "up", "base_model.model.", "lora_A/lora_B"),
        (f"base_model.model.diffusion_model.{Q}.lora_B", "up", "base_model.model.diffusion_model.", "lora_A/lora_B"),
        (f"transformer.{Q}.lora.down.weight", "down", "transformer.", "lora.down/lora.up"),
        (f"{Q}.lora.up.weight", "up", "", "lora.down/lora.up"),
        (f"{Q}.weight", "full", "", ""),
        (f"{Q}.base.weight", "full", "", ""),
        (f"base_model.model.{Q}.base_layer.weight", "full", "base_model.model.", ""),
        (f"diffusion_model.{Q}.weight", "full", "diffusion_model.", ""),
    ],
)
def test_every_form_of_name(key, part, prefix, naming):
    name = f"{Q}.weight" if part == "full" else Q
    assert parse_key(key) == LoraKey(name, part, prefix, naming)


@pytest.mark.parametrize(
    "key",
    [
        f"{Q}.dora_scale",
        f"{Q}.lora_magnitude_vector",
        f"{Q}.lora_magnitude_vector.weight",
        f"{Q}.lora_B.bias",
        f"{Q}.lora_B.default.bias",
        f"{Q}.lora_linear_layer.down.weight",
        f"{Q}.hada_w1_a",
        f"{Q}.diff",
        "lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "transformer_blocks.0.attn.to_q.lora_A.weight",
        "lora_unet_fm_modules_fm_head_0.weight",
        "alpha",
    ],
)
def test_names_of_other_kinds_of_file_are_not_guessed_at(key):
    assert parse_key(key) is None


@pytest.mark.parametrize(
    ("end", "method"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("magnitude", "DoRA"),
        ("lora_B.bias", "LoRA with biases (PEFT's lora_bias)"),
        ("lora_up.default.bias", "LoRA with biases (PEFT's lora_bias)"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("diff", None),
    ],
)
def test_other_methods_are_named(end, method):
    assert other_method(f"{Q}.{end}") == method


@pytest.mark.parametrize("name", ["u1", "u1.5", "a3b"])
def test_underscored_names_of_every_module_are_undone(configs, name):
    shapes = tensor_shapes(configs[name])
    weights = {key for key, shape in shapes.items() if len(shape) > 1} - {EMBED_TOKENS, LM_HEAD}
    for path in (key.removesuffix(".weight") for key in weights):
        key = parse_key(f"lora_unet_{path.replace('.', '_')}.lora_down.weight")
        assert key == LoraKey(path, "down", "lora_unet_", "lora_down/lora_up")
