import json

import pytest
import torch

from u1_core.cli.lora import parse_bytes
from u1_core.cli.main import main
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.plan import DEFAULT_UNFROZEN, plan_lora
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.tiny import tiny_config, write_tiny_model


def _run(capsys, *arguments):
    status = main(["lora", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize(
    ("choice", "modules", "parameters"),
    [(["--preset", "attn_mlp"], 294, 203_685_888), (["--spec", "all=r128a128"], 296, 409_337_856)],
)
def test_plan_of_a_published_model(capsys, choice, modules, parameters):
    status, out, _ = _run(capsys, "plan", "--model", "U1-8B", *choice, "--unfreeze", *DEFAULT_UNFROZEN, "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["modules"], facts["parameters"], facts["bytes_bf16"]) == (modules, parameters, 2 * parameters)
    assert facts["trainable_parameters"] == parameters + 82_604_032
    assert len(facts["module_list"]) == modules
    assert facts["module_list"][-1]["parameters"] == facts["module_list"][-1]["rank"] * (4096 + 12288)


def test_plan_from_a_config_alone_as_a_table(capsys, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config("a3b")), encoding="utf-8")
    status, out, _ = _run(
        capsys, "plan", "--model", config, "--spec", "moe_mlp=r2;all=r1", "--unfreeze", "fm_head.2.bias"
    )
    assert status == 0
    assert "mlp_mot_gen.experts.*.up_proj                  15          3,120" in out
    assert "left out, as A3B models do not have them: mlp_mot_gen.gate_proj," in out
    assert _run(capsys, "plan", "--model", tmp_path, "--spec", "attn")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "atn=r4"], "there is no target 'atn'; did you mean 'attn'?"),
        (["--preset", "atn_mlp"], "there is no such preset; did you mean 'attn_mlp'?"),
        (["--spec", "attn", "--preset", "attn_mlp"], "give either --spec or --preset"),
        ([], "give either --spec or --preset"),
        (["--spec", "attn", "--unfreeze", "lm_head"], "cannot be trained whole"),
    ],
)
def test_mistakes_in_a_plan_are_one_line(capsys, arguments, message):
    status, out, err = _run(capsys, "plan", "--model", "U1-8B", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_inspect_prints_what_a_file_is(capsys, tmp_path, filled):
    write_lora(tmp_path / "x.safetensors", filled("u1.5"), {"steps": "3"})
    status, out, _ = _run(capsys, "inspect", tmp_path / "x.safetensors")
    assert status == 0
    for line in (
        "  for U1.5 (its metadata says U1.5)",
        "  rank 2, 4, alpha 2, scale (alpha / rank) 0.5, 1",
        "    stock ComfyUI LoraLoader  yes",
        "  metadata steps: 3",
    ):
        assert line in out.splitlines()
    facts = json.loads(_run(capsys, "inspect", tmp_path / "x.safetensors", "--json")[1])
    assert (facts["modules"], facts["kinds"], facts["metadata"]["steps"]) == (14, ["u1.5"], "3")
    assert _run(capsys, "inspect", tmp_path / "y.safetensors")[2].endswith("there is no such LoRA file\n")


def test_merge_writes_a_model(capsys, tmp_path):
    write_tiny_model(tmp_path / "model", "u1", dtype=torch.bfloat16)
    snapshot = Snapshot.open(tmp_path / "model")
    adapter = Adapter.create(plan_lora(snapshot.config, "attn=r2"), seed=0)
    for module in adapter.modules.values():
        module.up.data.fill_(1.0)
    write_lora(tmp_path / "x.safetensors", adapter)
    lora = f"{tmp_path / 'x.safetensors'}:0.5"
    arguments = ["merge", "--model", tmp_path / "model", "--lora", lora, "--lora", lora, "--dtype", "fp32"]
    status, out, _ = _run(capsys, *arguments, "--out", tmp_path / "out", "--shard-size", "1MB", "--json")
    assert status == 0
    assert (json.loads(out)["changed"], json.loads(out)["loras"][0]["strength"]) == (12, 0.5)
    name = "language_model.model.layers.0.self_attn.q_proj_mot_gen"
    merged = Snapshot.open(tmp_path / "out")
    expected = snapshot.read(f"{name}.weight").float() + adapter.modules[name].delta()
    torch.testing.assert_close(merged.read(f"{name}.weight"), expected.detach())
    status, _, err = _run(capsys, *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert "already there and not empty" in err


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("500 mb", 5 * 10**8), ("1.5G", 15 * 10**8), ("700", 700)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 elephants", "0"])
def test_bad_sizes(text):
    with pytest.raises(U1Error, match="expected a size such as 4GB"):
        parse_bytes(text)
