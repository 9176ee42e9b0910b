import pytest

from u1_core.errors import U1Error
from u1_core.lora.kinds import KINDS, kinds_in_words, possible_kinds
from u1_core.lora.plan import plan_lora


def _kinds(config, spec, metadata=(), full=()):
    modules = plan_lora(config, spec).modules
    names = [*(module.path for module in modules), *full]
    return possible_kinds(names, [(module.rank, module.alpha) for module in modules], dict(metadata))


def test_names_tell_kinds_apart(configs):
    assert _kinds(configs["u1"], "attn")[0] == KINDS
    assert _kinds(configs["u1"], "attn;mlp")[0] == {"u1", "u1.5"}
    assert _kinds(configs["u1"], "all")[0] == {"u1"}
    assert _kinds(configs["u1"], "fm_head")[0] == {"u1", "a3b"}
    assert _kinds(configs["a3b"], "gen_moe_mlp")[0] == {"a3b"}
    assert _kinds(configs["u1"], "attn;mlp", full=["fm_modules.fm_head.0.bias"])[0] == {"u1"}
    assert _kinds(configs["u1"], "attn", full=["fm_modules.fm_head.conv1.bias"])[0] == {"u1.5"}


def test_metadata_tells_and_the_reason_is_given(configs):
    assert _kinds(configs["u1"], "attn", {"u1.base_kind": "u1.5"}) == ({"u1.5"}, "its metadata says U1.5")
    kinds, reason = _kinds(configs["u1"], "attn;mlp", {"format": "train_u1.upstream_lora"})
    assert kinds == {"u1"}
    assert reason.startswith(
        "it is from a trainer that knows no U1.5 and it has language_model.model.layers.0.mlp_mot_gen"
    )
    assert _kinds(configs["u1"], "attn")[1] == "nothing in it tells"


def test_the_official_8_step_lora_of_u15_is_known(configs):
    official = {"tensor_kind": "neo_hf_lora"}
    kinds, reason = _kinds(configs["U1.5-8B"], "attn=r128a8;mlp=r128a8", official)
    assert kinds == {"u1.5"}
    assert "U1.5's official 8-step LoRA" in reason
    assert _kinds(configs["U1-8B"], "attn=r128a128;mlp=r128a128", official)[0] == {"u1", "u1.5"}


def test_a_file_shaped_like_the_official_one_may_be_another(configs):
    like, official = (configs["U1-8B"], "attn=r128a8;mlp=r128a8"), {"tensor_kind": "neo_hf_lora"}
    assert _kinds(*like)[0] == _kinds(*like, {"tensor_kind": "other"})[0] == {"u1", "u1.5"}
    assert _kinds(*like, {"u1.base_kind": "u1"}) == ({"u1"}, "its metadata says U1")
    assert _kinds(*like, official | {"u1.base_kind": "u1"}) == ({"u1"}, "its metadata says U1")
    assert _kinds(*like, official | {"format": "train_u1.upstream_lora"})[0] == {"u1"}
    assert _kinds(*like, official, full=["fm_modules.fm_head.0.bias"])[0] == {"u1"}


def test_contradictions_and_unknown_kinds(configs):
    with pytest.raises(U1Error, match=r"contradicts itself: its metadata says U1.5 and it has fm_modules.fm_head.0"):
        _kinds(configs["u1"], "all", {"u1.base_kind": "u1.5"})
    with pytest.raises(U1Error, match=r"is 'u15', none of u1, u1.5, a3b; did you mean 'u1"):
        _kinds(configs["u1"], "all", {"u1.base_kind": "u15"})


def test_words_for_kinds():
    assert kinds_in_words({"u1.5", "u1"}) == "U1 or U1.5"
    assert kinds_in_words(KINDS) == "U1 or U1.5 or A3B"
