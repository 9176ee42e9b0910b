import json
import shutil

import pytest
import torch
from safetensors import safe_open

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.lora.files import read_lora
from u1_core.lora.merge import MERGED, merge_loras
from u1_core.lora.plan import plan_lora
from u1_core.parity import run_parity
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.tiny import write_tiny_model

NORM = "language_model.model.norm_mot_gen.weight"
Q0 = "language_model.model.layers.0.self_attn.q_proj_mot_gen"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge") / "model"
    write_tiny_model(folder, "u1", dtype=torch.bfloat16)
    (folder / "u1_source.json").write_text('{"id": "a/b", "revision": "c"}', encoding="utf-8")
    (folder / "README.md").write_text("read me", encoding="utf-8")
    return Snapshot.open(folder)


def _trained(config, spec, seed=0):
    adapter = Adapter.create(plan_lora(config, spec), seed)
    for index, module in enumerate(adapter.modules.values()):
        with torch.no_grad():
            module.up.normal_(generator=torch.Generator().manual_seed(seed + index))
    return adapter.to("cpu")


def test_sums_in_fp32_and_rounds_once(model, tmp_path):
    first, second = _trained(model.config, "all=r4a2"), _trained(model.config, "attn=r2a3", seed=9)
    first.strength, second.strength = 0.7, -0.4
    first.full[NORM] = torch.full((model.config.width,), 3.0)
    seen = []
    changed = merge_loras(model, [first, second], tmp_path / "out", progress=lambda *sizes: seen.append(sizes))
    merged = Snapshot.open(tmp_path / "out")
    assert changed == 3 * 7 + 2 + 1
    for name in model.tensors:
        exact, path = model.read(name).double(), name.removesuffix(".weight")
        for adapter in (first, second):
            if path in adapter.modules:
                module = adapter.modules[path]
                product = module.up.double() @ module.down.double()
                exact += adapter.strength * module.alpha / module.rank * product
        if name == NORM:
            exact += 0.7 * (3.0 - exact)
        got = merged.read(name)
        assert got.dtype == torch.bfloat16
        # bf16 keeps 8 bits, so half a unit of its last place is 2^-9 of the next power of two; 1e-6 is for fp32 sums.
        half_unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 9)
        assert ((got.double() - exact).abs() <= half_unit + 1e-6).all(), name
    assert seen[-1] == (model.total_bytes, model.total_bytes)
    assert len(seen) == len(model.tensors)


def test_other_files_are_copied_but_not_where_it_came_from(model, tmp_path):
    merge_loras(model, [_trained(model.config, "attn=r1")], tmp_path / "out", dtype=torch.float32, shard_bytes=300_000)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert len(weights) > 2
    assert names - weights == {
        "README.md",
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    merged = Snapshot.open(tmp_path / "out")
    assert {entry.dtype for entry in merged.tensors.values()} == {torch.float32}
    with safe_open(tmp_path / "out" / sorted(weights)[0], "pt") as file:
        assert file.metadata() == {"format": "pt", "u1.base_kind": "u1", MERGED: '[["LoRA", 1.0]]'}


def test_a_single_file_takes_only_the_models_own_files_along(model, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(model.path, folder)
    (folder / "other.json").write_text("{}", encoding="utf-8")
    single = Snapshot.open(folder / "model.safetensors")
    merge_loras(single, [_trained(model.config, "attn=r1")], tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_strength_zero_changes_nothing(model, tmp_path):
    adapter = _trained(model.config, "attn=r1")
    adapter.strength = 0.0
    assert merge_loras(model, [adapter], tmp_path / "out") == 0
    assert torch.equal(Snapshot.open(tmp_path / "out").read(f"{Q0}.weight"), model.read(f"{Q0}.weight"))


def test_what_cannot_be_live_can_be_merged(model, tmp_path):
    path = "fm_modules.timestep_embedder.mlp.2"
    width = model.config.width
    adapter = Adapter({path: LoraModule(torch.ones(1, width), torch.ones(width, 1), 2.0)})
    merge_loras(model, [adapter], tmp_path / "out", dtype=torch.float32)
    difference = Snapshot.open(tmp_path / "out").read(f"{path}.weight") - model.read(f"{path}.weight").float()
    torch.testing.assert_close(difference, torch.full((width, width), 2.0))


def test_mistakes_leave_nothing_behind(model, tmp_path):
    adapter = _trained(model.config, "attn=r1")
    with pytest.raises(U1Error, match="already there and not empty"):
        merge_loras(model, [adapter], model.path)
    adapter.kinds = frozenset({"u1.5"})
    with pytest.raises(U1Error, match=r"this LoRA is for U1\.5"):
        merge_loras(model, [adapter], tmp_path / "out")
    adapter.kinds = frozenset({"u1"})
    adapter.strength = 1e30
    with pytest.raises(U1Error, match="does not fit into float16"):
        merge_loras(model, [adapter], tmp_path / "out", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


# The reference picture for U1.5 was made without its LoRA (see `u1 parity`), so it says nothing here.
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_merged_model_samples_what_the_official_merge_did(shared, tmp_path, kind):
    source = shared / "oracle" / kind
    case = json.loads((source / "manifest.json").read_text(encoding="utf-8"))["cases"]["t2i_lora_merged"]
    adapter = read_lora(source / case.pop("lora")).adapter
    assert merge_loras(Snapshot.open(source / "model"), [adapter], tmp_path / "model", torch.float32) == case["modules"]
    shutil.copyfile(source / "t2i_lora_merged.safetensors", tmp_path / "t2i_lora_merged.safetensors")
    manifest = json.dumps({"cases": {"t2i_lora_merged": case}})
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
    (verdict,) = run_parity(tmp_path)
    assert verdict.error < 1e-5
