import torch
from safetensors.torch import save_file

from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.lora.files import write_full, write_lora
from u1_core.lora.inspect import Coverage, inspect_lora
from u1_core.model.config import module_name


def _verdicts(path):
    return {load.where: (load.loads, load.reason) for load in inspect_lora(path).loads}


def _bare(adapter, path, alpha=True, dtype=torch.float32, prefix="", sides=("lora_down", "lora_up")):
    tensors = {}
    for name, module in adapter.modules.items():
        tensors[f"{prefix}{name}.{sides[0]}.weight"] = module.down.to(dtype)
        tensors[f"{prefix}{name}.{sides[1]}.weight"] = module.up.to(dtype)
        tensors |= {f"{prefix}{name}.alpha": torch.tensor(module.alpha)} if alpha else {}
    save_file(tensors, path)
    return path


def test_our_own_file(tmp_path, filled):
    path = tmp_path / "x.safetensors"
    write_lora(path, filled("u1", "attn=r4a2;mlp=r2a2;mlp_mot_gen.up_proj=off;fm_modules.fm_head.2=r1"))
    found = inspect_lora(path)
    assert (found.kinds, found.for_model, found.reason) == (("u1",), "U1", "its metadata says U1")
    assert (found.modules, found.ranks, found.alphas, found.scales) == (13, (1, 2, 4), (1.0, 2.0), (0.5, 1.0))
    attention, mlp, head = 4 * (2 * (32 + 64) + 2 * (32 + 32)), 2 * 2 * (32 + 48), 4096 + 3072
    assert found.parameters == 2 * (attention + mlp) + head
    assert Coverage("q_proj_mot_gen", 2, "0-1") in found.covers
    assert Coverage("fm_modules.fm_head.2", 1, "") in found.covers
    assert len(found.covers) == 7
    assert (found.prefix, found.naming, found.dtypes) == ("diffusion_model.", "lora_down/lora_up", ("F32",))
    assert found.file_bytes == path.stat().st_size
    assert _verdicts(path) == {
        "official scripts": (True, ""),
        "stock ComfyUI LoraLoader": (False, "the keys are right, but ComfyUI by itself has only U1.5"),
        "U1 Style Studio": (True, ""),
    }


def test_a_file_for_u15_loads_everywhere(tmp_path, filled):
    write_lora(tmp_path / "x.safetensors", filled("u1.5"))
    assert set(_verdicts(tmp_path / "x.safetensors").values()) == {(True, "")}


def test_coverage_of_experts_towers_and_some_layers(tmp_path, filled):
    adapter = filled("a3b", "gen_moe_mlp=r1")
    for name in [name for name in adapter.modules if ".layers.0." in name]:
        del adapter.modules[name]
    understanding = module_name("", 0, "self_attn.q_proj")
    adapter.modules[understanding] = LoraModule(torch.ones(1, 32), torch.ones(64, 1), 1.0)
    write_lora(tmp_path / "x.safetensors", adapter)
    assert set(inspect_lora(tmp_path / "x.safetensors").covers) == {
        Coverage("mlp_mot_gen.experts.*.gate_proj", 3, "1"),
        Coverage("mlp_mot_gen.experts.*.up_proj", 3, "1"),
        Coverage("mlp_mot_gen.experts.*.down_proj", 3, "1"),
        Coverage("self_attn.q_proj (understanding tower)", 1, "0"),
    }


def test_a_file_that_does_not_say(tmp_path, filled):
    path = _bare(filled("u1"), tmp_path / "x.safetensors", dtype=torch.bfloat16)
    found = inspect_lora(path)
    assert found.for_model == "U1 or U1.5"
    assert _verdicts(path)["official scripts"] == (True, "the oldest of them want F32, not BF16")
    loads, reason = _verdicts(path)["stock ComfyUI LoraLoader"]
    assert not loads
    assert reason.endswith("this file's keys are bare")


def test_why_other_forms_do_not_load(tmp_path, filled):
    path = _bare(filled("u1.5"), tmp_path / "a.safetensors", alpha=False, prefix="diffusion_model.")
    assert _verdicts(path)["official scripts"] == (False, "they need an alpha for each module")
    assert _verdicts(path)["stock ComfyUI LoraLoader"][0]
    assert inspect_lora(path).notes == ("14 modules have no alpha: it is taken to be the rank (scale 1)",)
    peft = _bare(filled("u1.5"), tmp_path / "b.safetensors", prefix="base_model.model.", sides=("lora_A", "lora_B"))
    assert "lora_down.weight and lora_up.weight" in _verdicts(peft)["official scripts"][1]
    assert _verdicts(peft)["stock ComfyUI LoraLoader"][1].endswith("this file has base_model.model.")
    assert _verdicts(peft)["U1 Style Studio"][0]
    diffusers = _bare(filled("u1.5"), tmp_path / "c.safetensors", sides=("lora.down", "lora.up"))
    assert "lora_down.weight and lora_up.weight" in _verdicts(diffusers)["official scripts"][1]


def test_full_tensors_are_counted_and_their_loss_is_told(tmp_path, filled):
    full = {"fm_modules.fm_head.0.bias": torch.ones(4096), "fm_modules.fm_head.2.bias": torch.ones(3072)}
    write_full(tmp_path / "full.safetensors", full, "u1")
    write_lora(tmp_path / "x.safetensors", filled("u1"), {"u1.full_tensors": "full.safetensors"})
    found = inspect_lora(tmp_path / "x.safetensors")
    assert (found.full_tensors, found.full_parameters) == (tuple(full), 7168)
    assert _verdicts(tmp_path / "x.safetensors")["official scripts"] == (True, "without the fully trained tensors")
    alone = _verdicts(tmp_path / "full.safetensors")
    assert [alone[where][0] for where in alone] == [False, False, True]


def test_what_can_only_be_merged_is_told(tmp_path):
    module = LoraModule(torch.ones(1, 32), torch.ones(32, 1), 1.0, (2, 2))
    adapter = Adapter({"vision_model.embeddings.dense_embedding": module}, kinds=frozenset({"u1"}))
    write_lora(tmp_path / "x.safetensors", adapter)
    assert _verdicts(tmp_path / "x.safetensors")["U1 Style Studio"] == (
        False,
        "only merged into a model, with `u1 lora merge`",
    )
