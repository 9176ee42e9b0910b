import copy
import json
import math

import pytest

from u1_core.errors import U1Error
from u1_core.model.config import (
    GENERATION,
    UNDERSTANDING,
    MoeConfig,
    U1Config,
    layer_tensor_shapes,
    linear_modules,
    module_name,
    tensor_shapes,
)
from u1_core.released import released_config
from u1_core.weights.tiny import tiny_config

RELEASED = {"u1_8b": (1116, "u1"), "u15_8b": (1116, "u1.5"), "u1_a3b": (24120, "a3b")}


def config_with(kind="u1", **changes) -> U1Config:
    """A tiny config with some fields changed; `llm_…` and `vision_…` go into those sections, None deletes."""
    raw = copy.deepcopy(tiny_config(kind))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        place, name = (raw[f"{section}_config"], name) if name else (raw, section)
        place[name] = value
        if value is None:
            del place[name]
    return U1Config.from_dict(raw)


@pytest.mark.parametrize("name", RELEASED)
def test_shapes_of_the_released_models(shared, name):
    count, kind = RELEASED[name]
    theirs = {key: tuple(shape) for key, shape in json.loads((shared / f"u1/shapes_{name}.json").read_text()).items()}
    config = U1Config.from_file(shared / f"u1/config_{name}.json").with_head_width_of(theirs)
    assert config.kind == kind
    assert len(theirs) == count
    assert tensor_shapes(config) == theirs


def test_head_width_is_the_weights():
    config = released_config("U1-8B")
    assert config.head_width == 4096
    narrow = config.with_head_width_of({"fm_modules.fm_head.0.weight": (1536, 4096)})
    assert narrow.head_width == 1536
    assert tensor_shapes(narrow)["fm_modules.fm_head.2.weight"] == (3072, 1536)
    assert config.with_head_width_of({"something.else": (3, 3)}) is config


def test_pixel_head_width_is_its_first_convolution():
    config = config_with("u1.5")
    assert config.head_width == 1024
    shapes = tensor_shapes(config.with_head_width_of({"fm_modules.fm_head.conv1.weight": (96, 16, 3, 3)}))
    assert shapes["fm_modules.fm_head.conv1.weight"] == (96, 16, 3, 3)
    assert shapes["fm_modules.fm_head.conv2.weight"] == (192, 24, 3, 3)


def test_a_model_without_a_noise_scale_embedder():
    with_one, without = (set(tensor_shapes(config_with(add_noise_scale_embedding=there))) for there in (True, False))
    assert {name.rsplit(".", 3)[0] for name in with_one - without} == {"fm_modules.noise_scale_embedder"}
    assert len(with_one - without) == 4
    assert without < with_one


def test_the_size_a_model_is_made_for():
    assert released_config("U1-8B").native_pixels == 2048**2
    assert config_with(max_image_seq_len=64).native_pixels == 64 * 8 * 8


def test_bytes_of_a_token_of_u1_8b():
    assert released_config("U1-8B").kv_token_bytes == 172_032


def test_parameters_of_the_released_models():
    """Sizes in U1_FACTS: an 8B layer of one tower is 386 MB in bf16, A3B holds about 39B parameters."""
    config = released_config("U1-8B")
    layer = sum(math.prod(shape) for _, shape in layer_tensor_shapes(config, GENERATION, 0))
    assert round(2 * layer / 1e6) == 386
    a3b = tensor_shapes(released_config("U1-A3B"))
    assert round(sum(math.prod(shape) for shape in a3b.values()) / 1e9) == 39


@pytest.mark.parametrize(
    ("tower", "local", "name"),
    [
        (UNDERSTANDING, "self_attn.q_proj", "self_attn.q_proj"),
        (GENERATION, "self_attn.q_proj", "self_attn.q_proj_mot_gen"),
        (GENERATION, "mlp.gate_proj", "mlp_mot_gen.gate_proj"),
        (GENERATION, "mlp.experts.3.up_proj", "mlp_mot_gen.experts.3.up_proj"),
        (GENERATION, "input_layernorm", "input_layernorm_mot_gen"),
        (UNDERSTANDING, "mlp.gate", "mlp.gate"),
    ],
)
def test_module_names(tower, local, name):
    assert module_name(tower, 7, local) == f"language_model.model.layers.7.{name}"


def test_linear_modules_are_the_products_only():
    modules = linear_modules(config_with("u1"))
    # 3 layers x 2 towers x 7, two embedders x 2, the head's 2; no token embedding, lm_head, norm or convolution.
    assert len(modules) == 3 * 2 * 7 + 4 + 2
    assert modules["language_model.model.layers.2.mlp_mot_gen.down_proj"] == (64, 96)
    assert modules["fm_modules.timestep_embedder.mlp.0"] == (64, 256)
    # 3 layers x (4 + router + 3 x experts) in each tower, the embedders, the head.
    assert len(linear_modules(config_with("a3b"))) == 3 * (4 + 1 + 3 * 6) + 3 * (4 + 1 + 3 * 5) + 4 + 2
    assert len(linear_modules(config_with("u1.5"))) == 3 * 2 * 7 + 4


@pytest.mark.parametrize(
    ("mode", "tokens", "expected"),
    [
        ("resolution", 16, 0.5),
        ("resolution", 64, 1.0),
        ("resolution", 4096, 8.0),
        ("resolution", 16384, 8.0),
        ("dynamic", 256, 2.0),
        ("dynamic_sqrt", 1024, 2.0),
        ("static", 4096, 1.0),
    ],
)
def test_noise_scale(mode, tokens, expected):
    assert config_with(noise_scale_mode=mode).noise_scale_for(tokens) == pytest.approx(expected, rel=1e-12)


def test_noise_scale_follows_base_factor_and_cap():
    config = config_with(noise_scale=1.5, noise_scale_base_image_seq_len=16, noise_scale_max_value=5.0)
    assert config.noise_scale_for(16) == 1.5
    assert config.noise_scale_for(64) == 3.0
    assert config.noise_scale_for(256) == 5.0


def test_mixture_of_experts_of_each_tower():
    config = config_with("a3b")
    assert config.moe_of(UNDERSTANDING, 0) == MoeConfig(6, 2, 32, True)
    assert config.moe_of(GENERATION, 0) == MoeConfig(5, 3, 40, True)
    same = config_with("a3b", llm__gen_num_experts=None, llm__gen_num_experts_per_tok=None)
    assert same.moe_of(GENERATION, 0) == MoeConfig(6, 2, 40, True)
    assert config_with("a3b", llm__norm_topk_prob=False).moe == MoeConfig(6, 2, 32, False)


def test_layers_without_experts():
    config = config_with("a3b", llm__mlp_only_layers=[0])
    shapes = tensor_shapes(config)
    assert shapes["language_model.model.layers.0.mlp.gate_proj.weight"] == (96, 64)
    assert shapes["language_model.model.layers.1.mlp.gate.weight"] == (6, 64)
    assert shapes["language_model.model.layers.0.mlp_mot_gen.gate.weight"] == (5, 64)
    assert config_with("a3b", llm__decoder_sparse_step=2).dense_layers == {0, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', not 'neo_chat': this is not a SenseNova-U1 model"),
        ({"vision_config": None}, "vision_config is missing or not an object"),
        ({"concat_time_token_num": 4}, "concat_time_token_num is 4; only 0 is supported"),
        ({"use_adaLN": True}, "use_adaLN is True; only False is supported"),
        ({"extra_num_layers_post": 2}, "extra_num_layers_post is 2; only 0 is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; only False is supported"),
        ({"llm__attention_bias": True}, "llm_config.attention_bias is True; only False is supported"),
        (
            {"llm__rope_scaling": {"type": "yarn"}},
            "llm_config.rope_scaling is {'type': 'yarn'}; only None is supported",
        ),
        ({"llm__use_sliding_window": True}, "llm_config.use_sliding_window is True; only False is supported"),
        ({"llm__hidden_act": "gelu"}, "llm_config.hidden_act is 'gelu'; only 'silu' is supported"),
        ({"fm_head_layers": 3}, "fm_head_layers is 3; only the two-layer head is supported"),
        ({"llm__hidden_size": None}, "hidden_size is missing"),
        ({"llm__hidden_size": "64"}, "hidden_size is '64', expected a positive whole number"),
        ({"llm__num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, expected a positive whole number"),
        ({"llm__num_hidden_layers": True}, "num_hidden_layers is True, expected a positive whole number"),
        ({"llm__rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06, expected a positive number"),
        (
            {"llm__head_dim": 18},
            "head_dim 18 must divide by 4 and num_attention_heads 4 by num_key_value_heads 2",
        ),
        (
            {"llm__num_key_value_heads": 3},
            "head_dim 16 must divide by 4 and num_attention_heads 4 by num_key_value_heads 3",
        ),
        ({"use_pixel_head": True}, "use_pixel_head makes 32 pixels a token, but patch_size gives 8"),
    ],
)
def test_refuses_what_it_does_not_compute(changes, message):
    with pytest.raises(U1Error) as raised:
        config_with(**changes)
    assert str(raised.value) == message


def test_a_pixel_head_may_name_more_layers():
    assert config_with("u1.5", fm_head_layers=4).pixel_head


def test_file_errors_name_the_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(U1Error, match=r"there is no such file; a model folder needs its config\.json"):
        U1Config.from_file(path)
    path.write_text("{oops")
    with pytest.raises(U1Error, match=r"config\.json: cannot be read as JSON \(Expecting property name"):
        U1Config.from_file(path)
    path.write_text("[" * 200_000)
    with pytest.raises(U1Error, match=r"config\.json: cannot be read as JSON \(maximum recursion depth"):
        U1Config.from_file(path)
    path.write_text("[1]")
    with pytest.raises(U1Error) as raised:
        U1Config.from_file(path)
    assert str(raised.value) == f"{path}: expected an object of settings, found list"
