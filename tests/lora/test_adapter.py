from dataclasses import replace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule, layer_place, tower_of, tower_terms
from u1_core.lora.plan import FINAL_NORM, plan_lora
from u1_core.model.config import GENERATION, UNDERSTANDING, VISION, linear_modules, module_name
from u1_core.model.linear import linear

Q0 = "language_model.model.layers.0.self_attn.q_proj_mot_gen"


def test_new_terms_start_at_zero_within_the_kaiming_bound(configs):
    adapter = Adapter.create(plan_lora(configs["U1-8B"], "q_proj_mot_gen=r4;fm_modules.fm_head.0=r4a8"), seed=3)
    assert len(adapter.parameters()) == 2 * 43
    assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in adapter.parameters())
    down, up = adapter.modules[Q0].down, adapter.modules[Q0].up
    assert (down.shape, up.shape) == ((4, 4096), (4096, 4))
    assert not up.any()
    assert 0.99 / 64 < down.abs().max() <= 1 / 64
    assert abs(down.std().item() - 1 / 64 / 3**0.5) < 2e-4
    assert adapter.modules["fm_modules.fm_head.0"].scale == 2.0


def test_a_module_starts_the_same_whatever_else_is_planned(configs):
    whole = Adapter.create(plan_lora(configs["u1"], "all=r4"), seed=5)
    part = Adapter.create(plan_lora(configs["u1"], "q_proj_mot_gen=r4"), seed=5)
    other = Adapter.create(plan_lora(configs["u1"], "q_proj_mot_gen=r4"), seed=6)
    assert torch.equal(whole.modules[Q0].down, part.modules[Q0].down)
    assert not torch.equal(whole.modules[Q0].down, other.modules[Q0].down)
    assert not torch.equal(part.modules[Q0].down, part.modules[Q0.replace("0", "1")].down)


def test_places_invert_module_names(configs):
    for config in configs.values():
        for path in linear_modules(config):
            layer, local = layer_place(path)
            if layer is None:
                assert path.startswith("fm_modules.")
            else:
                assert module_name(tower_of(path), layer, local) == path


def test_terms_of_several_adapters_add_up_at_their_strengths(configs, filled):
    config, first, second = configs["u1"], filled("u1", "all=r4a2"), filled("u1", "attn=r3a3", seed=1)
    first.strength, second.strength = 0.5, -1.5
    terms = tower_terms(config, [first, second], GENERATION)
    assert [len(layer) for layer in terms.layers] == [7, 7]
    assert set(terms.modules) == {"fm_modules.fm_head.0", "fm_modules.fm_head.2"}
    x, weight = torch.randn(5, 32), torch.randn(64, 32)
    deltas = 0.5 * first.modules[Q0].delta() - 1.5 * second.modules[Q0].delta()
    got = linear(x, weight, terms=terms.layers[0]["self_attn.q_proj"])
    torch.testing.assert_close(got, x @ (weight + deltas).T, rtol=1e-5, atol=1e-4)
    assert len(terms.layers[1]["mlp.down_proj"]) == 1
    assert terms.layers[1]["mlp.down_proj"][0].scale == 0.5 * 2 / 4
    first.strength = 0.0
    assert [term.scale for term in tower_terms(config, [first, second], GENERATION).layers[0]["self_attn.q_proj"]] == [
        -1.5
    ]


def test_each_tower_gets_its_own_terms(configs, filled):
    config, adapter = configs["a3b"], filled("a3b", "moe_all=r2")
    assert adapter.touches(GENERATION)
    assert not adapter.touches(UNDERSTANDING)
    assert not any(tower_terms(config, [adapter], UNDERSTANDING).layers)
    assert set(tower_terms(config, [adapter], GENERATION).layers[1]) >= {"mlp.gate", "mlp.experts.2.down_proj"}
    path = module_name(UNDERSTANDING, 1, "mlp.experts.3.up_proj")
    both = Adapter({**adapter.modules, path: LoraModule(torch.ones(1, 32), torch.ones(8, 1), 1.0)})
    both.check(config)
    assert both.touches(UNDERSTANDING)
    assert [set(layer) for layer in tower_terms(config, [both], UNDERSTANDING).layers] == [
        set(),
        {"mlp.experts.3.up_proj"},
    ]


def test_dropout_is_drawn_per_module_and_step(configs):
    config = configs["u1"]
    adapter = Adapter.create(plan_lora(config, "attn=r4", dropout=0.25), seed=0)

    def seeds(step_seed):
        layers = tower_terms(config, [adapter], GENERATION, step_seed).layers
        return [term.seed for layer in layers for terms in layer.values() for term in terms]

    term = tower_terms(config, [adapter], GENERATION, 7).layers[0]["self_attn.q_proj"][0]
    assert term.dropout == 0.25
    assert seeds(7) == seeds(7)
    assert len({*seeds(7), *seeds(8)}) == 16
    assert all(0 <= seed < 2**63 for seed in seeds(7))
    assert tower_terms(config, [adapter], GENERATION).layers[0]["self_attn.q_proj"][0].dropout == 0.0


def test_a_copy_elsewhere_keeps_the_rest_and_hands_gradients_back(configs):
    adapter = Adapter.create(plan_lora(configs["u1"], "attn=r4"), seed=0)
    adapter.strength = 0.3
    copy = adapter.to("cpu", torch.bfloat16)
    assert copy.strength == 0.3
    assert copy.modules[Q0].alpha == 4.0
    assert {tensor.dtype for tensor in copy.parameters()} == {torch.bfloat16}
    copy.modules[Q0].down.float().sum().backward()
    assert torch.equal(adapter.modules[Q0].down.grad, torch.ones(4, 32))
    assert adapter.modules[Q0].down.dtype == torch.float32


def test_what_does_not_fit_is_listed(configs, filled):
    adapter = replace(filled("u1", "attn=r2"), name="x.safetensors", kinds=frozenset({"u1", "a3b"}))
    adapter.check(configs["u1"])
    with pytest.raises(
        U1Error, match=r"x.safetensors: .*q_proj_mot_gen is 64 x 32, in the model 4096 x 4096; .* and 5 more"
    ):
        adapter.check(configs["U1-8B"])
    adapter.modules["language_model.model.layers.9.mlp_mot_gen.gate_proj"] = adapter.modules[Q0]
    adapter.full[FINAL_NORM] = torch.ones(31)
    with pytest.raises(U1Error) as caught:
        adapter.check(configs["u1"])
    assert "no linear module language_model.model.layers.9.mlp_mot_gen.gate_proj" in str(caught.value)
    assert f"{FINAL_NORM} is (31,), in the model (32,)" in str(caught.value)


def test_another_kind_is_refused_with_the_reason(configs, filled):
    adapter = replace(filled("u1"), kind_reason="it has fm_modules.fm_head.0, which U1.5 has not", name="style")
    with pytest.raises(U1Error) as caught:
        adapter.check(configs["u1.5"])
    assert "style: this LoRA is for U1 (it has fm_modules.fm_head.0, which U1.5 has not)" in str(caught.value)
    assert "the model is U1.5" in str(caught.value)
    replace(adapter, kinds=frozenset({"u1", "u1.5"})).check(configs["u1.5"])


def test_what_cannot_be_changed_live_says_to_merge(configs):
    module = LoraModule(torch.ones(1, 8 * 2 * 2), torch.ones(32, 1), 1.0, (2, 2))
    embedder = Adapter({f"{VISION}.dense_embedding": module})
    norm = Adapter({}, full={"language_model.model.layers.0.input_layernorm_mot_gen.weight": torch.ones(32)})
    for adapter in (embedder, norm):
        adapter.check(configs["u1"], live=False)
        with pytest.raises(U1Error, match="u1 lora merge"):
            adapter.check(configs["u1"])
    Adapter({}, full={FINAL_NORM: torch.ones(32)}).check(configs["u1"])
