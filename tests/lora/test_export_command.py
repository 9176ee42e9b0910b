import json
from dataclasses import replace

import pytest
import torch

from u1_core.cli.main import main
from u1_core.lora.adapter import Adapter
from u1_core.lora.export import fold_full
from u1_core.lora.files import FULL_FILE, read_lora, write_full, write_lora
from u1_core.lora.plan import DEFAULT_UNFROZEN, plan_lora, select_unfrozen
from u1_core.session import Session


@pytest.fixture
def saved(models, tmp_path):
    """A LoRA with tensors trained whole beside it, as a run leaves them."""
    session = Session.open(models["u1"], "cpu")
    adapter = Adapter.create(plan_lora(session.config, "attn=r2"), 0).to("cpu")
    generator = torch.Generator().manual_seed(0)
    for name in select_unfrozen(session.config, DEFAULT_UNFROZEN):
        base = session.snapshot.read(name)
        adapter.full[name] = base + 0.05 * torch.randn(base.shape, generator=generator)
    write_full(tmp_path / "style.full.safetensors", adapter.full, "u1")
    metadata = {FULL_FILE: "style.full.safetensors", "modelspec.thumbnail": "data:image/jpeg;base64,AAAA"}
    write_lora(tmp_path / "style.safetensors", replace(adapter, full={}), metadata)
    return tmp_path / "style.safetensors"


def test_it_writes_what_fold_full_makes_and_prints_each_error(models, saved, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    command = ["lora", "export", str(saved), "--model", str(models["u1"]), "--device", "cpu", "--fold-full"]
    assert main([*command, "--rank", "3", "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    source = Session.open(models["u1"], "cpu").snapshot
    expected, folded = fold_full(read_lora(saved).adapter, source.read, 3)
    assert [(one["name"], one["error"]) for one in facts["folded"]] == [(one.name, one.error) for one in folded]
    file = read_lora(out)
    assert set(file.adapter.modules) == set(expected.modules)
    assert not file.adapter.full
    for path, module in expected.modules.items():
        torch.testing.assert_close(file.adapter.modules[path].delta(), module.delta())
    assert (file.metadata["u1.folded_rank"], FULL_FILE in file.metadata) == ("3", False)
    assert main([*command, "--linear-only", "--out", str(tmp_path / "linear.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("linear.safetensors: 18 modules")
    (patch,) = [line for line in lines if "patch_embedding.weight" in line]
    assert patch.endswith("100.00%  a convolution, and only linear terms are wanted")
    assert main(["lora", "inspect", str(out)]) == 0
    assert (
        "  metadata modelspec.thumbnail: data:image/jpeg;base64, 27 characters" in capsys.readouterr().out.splitlines()
    )


def test_without_folding_it_says_what_is_left_out(saved, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["lora", "export", str(saved), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "left out: 16 tensors trained whole (--fold-full takes them along)" in text
    assert read_lora(out).adapter.modules.keys() == read_lora(saved).adapter.modules.keys()
    assert main(["lora", "export", str(saved), "--out", str(out)]) == 2
    assert "out.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{saved}", "--fold-full"], "folding needs the base model; give --model"),
        (["{folder}"], "is no run: there is no recipe.yaml in it; give a run's folder or a LoRA file"),
        (
            ["{saved}", "--fold-full", "--model", "{model}", "--rank", "0"],
            "rank 0: expected a whole number, 1 or more",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(models, saved, tmp_path, capsys, arguments, message):
    places = {"saved": saved, "folder": tmp_path, "model": models["u1"]}
    out = tmp_path / "out.safetensors"
    assert main(["lora", "export", *(a.format(**places) for a in arguments), "--device", "cpu", "--out", str(out)]) == 2
    assert capsys.readouterr().err.rstrip().endswith(message)
    assert not out.exists()
