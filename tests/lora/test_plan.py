import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.plan import DEFAULT_UNFROZEN, FINAL_NORM, plan_lora, select_unfrozen, target_of
from u1_core.lora.spec import PRESETS
from u1_core.model.config import tensor_shapes


def _layers(plan):
    return [module for module in plan.modules if ".layers." in module.path]


def _unfrozen_parameters(config, patterns):
    shapes = tensor_shapes(config)
    return sum(torch.Size(shapes[name]).numel() for name in select_unfrozen(config, patterns))


@pytest.mark.parametrize(
    ("spec", "modules", "parameters"),
    [
        ("attn_only", 168, 71_565_312),
        ("attn_mlp", 294, 203_685_888),
        ("attn_mlp_no_head", 294, 203_685_888),
        ("default", 296, 204_668_928),
        ("all=r64a64", 296, 204_668_928),
        ("official_r128", 296, 409_337_856),
        ("attn=r128a128;mlp=r128a128;fm_head=r128a128", 296, 409_337_856),
        ("attn=r64;mlp=r64;mlp_mot_gen.down_proj=off", 252, 159_645_696),
        ("fm_modules.fm_head.2=r8", 1, 8 * (4096 + 3072)),
    ],
)
def test_sizes_on_u1_8b(configs, spec, modules, parameters):
    plan = plan_lora(configs["U1-8B"], spec)
    assert (len(plan.modules), plan.parameters) == (modules, parameters)
    assert plan.n_bytes(torch.float32) == 4 * parameters
    assert plan.n_bytes(torch.bfloat16) == 2 * parameters
    assert sum(count for count, _ in plan.by_target().values()) == modules
    assert sum(count for _, count in plan.by_target().values()) == parameters


def test_released_configs_give_the_same_sizes(model_config):
    assert plan_lora(model_config("config_u1_8b.json"), "attn_mlp").parameters == 203_685_888
    assert len(plan_lora(model_config("config_u1_8b.json"), "official_r128").modules) == 296
    assert len(plan_lora(model_config("config_u15_8b.json"), "attn_mlp").modules) == 294
    moe = plan_lora(model_config("config_u1_a3b.json"), "gen_moe_mlp=r8a8;gen_moe_router=r8a8")
    assert (len(moe.modules), moe.parameters) == (48 * 97, 48 * (96 * 8 * (2048 + 768) + 8 * (2048 + 32)))


def test_sizes_on_a3b(configs):
    plan = plan_lora(configs["A3B"], "a3b_moe_r8")
    experts = 48 * 32 * 3 * 8 * (2048 + 768)
    attention = 48 * 8 * (2 * (2048 + 4096) + 2 * (2048 + 512))
    head = 8 * (2048 + 4096 + 4096 + 3072)
    assert plan.parameters == experts + attention + head
    assert plan.by_target()["mlp_mot_gen.experts.*.down_proj"] == (48 * 32, 48 * 32 * 8 * (2048 + 768))
    one = plan_lora(configs["A3B"], "mlp_mot_gen.experts.7.up_proj=r2")
    assert [module.path for module in one.modules][:1] == [
        "language_model.model.layers.0.mlp_mot_gen.experts.7.up_proj"
    ]
    assert len(one.modules) == 48
    assert (one.modules[0].out_features, one.modules[0].in_features) == (768, 2048)


def test_later_entries_override_earlier_ones_module_by_module(configs):
    spec = "gen_moe_mlp=r8;mlp_mot_gen.experts.1.up_proj=off;mlp_mot_gen.experts.2.up_proj=r4a2"
    ranks = {module.path.partition("experts.")[2]: module.rank for module in plan_lora(configs["a3b"], spec).modules}
    assert len(ranks) == 8
    assert "1.up_proj" not in ranks
    assert (ranks["2.up_proj"], ranks["2.down_proj"]) == (4, 8)
    assert {module.rank for module in plan_lora(configs["u1"], "q_proj_mot_gen=off;attn=r3").modules} == {3}


def test_only_the_generation_tower_is_reached(configs):
    for name in ("u1", "u1.5", "a3b"):
        plan = plan_lora(configs[name], "attn=r1")
        assert len(plan.modules) == 8
        assert all("_mot_gen" in module.path for module in plan.modules)


def test_groups_and_presets_report_what_a_kind_lacks(configs):
    heads = ("fm_modules.fm_head.0", "fm_modules.fm_head.2")
    for spec in ("all=r64", "default", "official_r128"):
        plan = plan_lora(configs["U1.5-8B"], spec)
        assert (len(plan.modules), plan.absent) == (294, heads)
    plan = plan_lora(configs["a3b"], "all=r4")
    assert plan.absent == ("mlp_mot_gen.gate_proj", "mlp_mot_gen.up_proj", "mlp_mot_gen.down_proj")
    assert len(_layers(plan)) == 8
    assert plan_lora(configs["u1"], "default").absent == ()


@pytest.mark.parametrize(
    ("name", "spec", "nearest"),
    [
        ("a3b", "attn=r8;mlp=r8", "'moe_mlp'"),
        ("a3b", "mlp_mot_gen.gate_proj=r8", "'mlp_mot_gen.gate'"),
        ("a3b", "mlp_mot_gen.experts.9.up_proj=r8", "'mlp_mot_gen.experts.2.up_proj'"),
        ("u1", "gen_moe_mlp=r8", "'mlp'"),
        ("u1", "mlp_mot_gen.gate=r8", "'mlp_mot_gen.gate_proj'"),
        ("u1.5", "fm_head=r8", "unfreeze pattern '^fm_modules\\.fm_head\\.'"),
        ("u1.5", "attn=r8;fm_modules.fm_head.0=r8", "matches no module of this u1.5 model"),
    ],
)
def test_a_target_that_matches_nothing_names_the_nearest(configs, name, spec, nearest):
    with pytest.raises(U1Error) as caught:
        plan_lora(configs[name], spec)
    assert "the nearest target that does is" in str(caught.value)
    assert nearest in str(caught.value)


def test_nothing_left_and_a_bad_dropout_are_errors(configs):
    with pytest.raises(U1Error, match="leaves no module of this u1 model"):
        plan_lora(configs["u1"], "attn=r8;attn=off")
    with pytest.raises(U1Error, match=r"matches no module|leaves no module"):
        plan_lora(configs["u1"], "a3b_moe_router_r8")
    with pytest.raises(U1Error, match=r"dropout is 1\.0"):
        plan_lora(configs["u1"], "attn", dropout=1.0)
    assert all(plan_lora(configs["a3b"], name).modules for name in PRESETS)


def test_switching_off_what_a_kind_lacks_is_no_mistake(configs):
    assert len(plan_lora(configs["u1.5"], "all=r4;fm_head=off").modules) == 14


def test_the_default_recipe_trains_286_million(configs):
    assert _unfrozen_parameters(configs["U1-8B"], DEFAULT_UNFROZEN) == 286_289_920 - 203_685_888
    assert len(select_unfrozen(configs["U1-8B"], DEFAULT_UNFROZEN)) == 16


def test_unfrozen_tensors_come_in_order_and_once(configs):
    names = select_unfrozen(configs["u1.5"], [r"fm_head\.conv2", r"^fm_modules\.fm_head\.", r"model\.norm_mot_gen"])
    heads = [f"fm_modules.fm_head.{conv}.{part}" for conv in ("conv1", "conv2") for part in ("weight", "bias")]
    assert names == [FINAL_NORM, *heads]
    assert select_unfrozen(configs["u1"], []) == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("^fm_modules.timestep_embeder.", "matches no tensor of this u1 model; did you mean"),
        ("norm", "matches language_model.model.norm.weight, which cannot be trained whole"),
        ("lm_head", "only fm_modules.* and language_model.model.norm_mot_gen.weight can"),
        ("fm_head(", "is not a regular expression"),
    ],
)
def test_bad_unfreeze_patterns(configs, pattern, message):
    with pytest.raises(U1Error) as caught:
        select_unfrozen(configs["u1"], [pattern])
    assert message in str(caught.value)


def test_targets_of_paths():
    layer = "language_model.model.layers.11"
    assert target_of(f"{layer}.self_attn.q_proj_mot_gen") == "q_proj_mot_gen"
    assert target_of(f"{layer}.mlp_mot_gen.experts.3.up_proj") == "mlp_mot_gen.experts.3.up_proj"
    assert target_of(f"{layer}.mlp_mot_gen.gate") == "mlp_mot_gen.gate"
    assert target_of(f"{layer}.self_attn.q_proj") is None
    assert target_of("fm_modules.fm_head.2") == "fm_modules.fm_head.2"
    assert target_of("fm_modules.timestep_embedder.mlp.0") is None
