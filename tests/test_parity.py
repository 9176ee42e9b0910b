import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from u1_core.cli.main import main
from u1_core.errors import U1Error
from u1_core.parity import Verdict, relative_error, run_parity

ORACLES = ("dense", "moe", "u15")
KEY = "language_model.model.layers.1.self_attn.k_proj"


ON_A_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="parity on a card needs one")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_CARD)])
@pytest.mark.parametrize("name", ORACLES)
def test_the_compact_oracle(compact_oracle, name, device):
    """What the repository itself carries: every kind of case."""
    verdicts = {verdict.case: verdict for verdict in run_parity(compact_oracle(name), device=device)}
    manifest = json.loads((compact_oracle(name) / "manifest.json").read_text(encoding="utf-8"))
    assert list(verdicts) == list(manifest["cases"])
    assert {"prefix_cond", "vision_understanding", "understand", "interleave_dual_cfg", "train_step"} <= set(verdicts)
    for verdict in verdicts.values():
        assert verdict.passed
        assert verdict.error > 0  # fp32 against fp32 in another order: exactly nothing would be suspicious
        assert verdict.tolerance == (1e-5 if verdict.case.startswith(("prefix", "gen", "vis", "und")) else 1e-4)


@pytest.mark.parametrize("name", ORACLES)
def test_the_whole_oracle(shared, name):
    verdicts = run_parity(shared / "oracle" / name)
    assert len(verdicts) == 22
    assert [verdict for verdict in verdicts if not verdict.passed] == []


@pytest.fixture
def copy(compact_oracle, tmp_path):
    """(*cases) -> a copy of the compact U1 folder with these cases alone, to be spoiled."""

    def make(*cases: str) -> Path:
        folder = Path(shutil.copytree(compact_oracle("dense"), tmp_path / "dense"))
        edit_manifest(folder, lambda all_cases: {name: all_cases[name] for name in cases})
        return folder

    return make


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["cases"] = change(manifest["cases"])
    path.write_text(json.dumps(manifest), encoding="utf-8")


def edit_tensor(path: Path, name: str, change) -> None:
    tensors = load_file(path)
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path)


def nudged(tensor: torch.Tensor) -> torch.Tensor:
    """One number changed by as much as the mean size of all."""
    tensor.view(-1)[5] += tensor.abs().mean()
    return tensor


def verdicts_of(capsys) -> list[dict]:
    (rows,) = json.loads(capsys.readouterr().out).values()
    return rows


def test_a_changed_weight_fails_what_uses_it(copy, capsys):
    """A weight of the generation tower: the prompt's K/V is right, the picture is not."""
    folder = copy("prefix_uncond", "t2i_cfg4")
    edit_tensor(folder / "model" / "model.safetensors", f"{KEY}_mot_gen.weight", nudged)
    assert main(["parity", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder)
    assert lines[1].split() == ["case", "error", "allowed", "verdict"]
    assert lines[2].split()[0::3] == ["prefix_uncond", "passed"]
    assert lines[3].split()[0] == "t2i_cfg4"
    assert lines[3].endswith("1e-04  FAILED at image")
    assert len(lines) == 4


def test_a_changed_weight_of_the_understanding_tower(copy, capsys):
    folder = copy("prefix_uncond", "vision_understanding")
    edit_tensor(folder / "model" / "model.safetensors", f"{KEY}.weight", nudged)
    assert main(["parity", str(folder), "--json"]) == 1
    prefix, vision = verdicts_of(capsys)
    assert (prefix["passed"], vision["passed"]) == (False, True)
    assert prefix["at"].split()[1] in ("k.1", "k.2", "v.2", "hidden")
    assert prefix["error"] > 1e-5


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("prefix_uncond", "v.1"),
        ("gen_step", "x_pred"),
        ("gen_step", "timestep_embedding"),
        ("train_step", "grad_v.language_model.model.layers.1.mlp_mot_gen.up_proj.lora_down"),
        ("understand", "logits"),
        ("t2i_cfg4", "initial_noise"),
        ("interleave_dual_cfg", "image.0"),
    ],
)
def test_a_changed_expectation_fails_its_case(copy, capsys, case, name):
    needs = {"gen_step": ["prefix_cond"], "train_step": ["prefix_cond"]}
    folder = copy(*needs.get(case, ["vision_understanding"]), case)
    edit_tensor(folder / f"{case}.safetensors", name, nudged)
    assert main(["parity", str(folder), "--json"]) == 1
    other, spoiled = verdicts_of(capsys)
    assert other["passed"]
    assert not spoiled["passed"]
    assert spoiled["case"] == case
    assert name in spoiled["at"]
    assert spoiled["error"] > spoiled["tolerance"]


def test_other_texts_and_tokens_are_infinitely_wrong(copy, capsys):
    folder = copy("interleave_dual_cfg", "t2i_think")

    def change(cases: dict) -> dict:
        cases["interleave_dual_cfg"]["text"] += "!"
        cases["t2i_think"]["think_text"] = "hm"
        return cases

    edit_manifest(folder, change)
    assert main(["parity", str(folder), "--json"]) == 1
    rows = verdicts_of(capsys)
    assert [(row["at"], row["error"], row["passed"]) for row in rows] == [
        ("text", None, False),
        ("think_text", None, False),
    ]


def test_json_of_several_folders(copy, compact_oracle, capsys):
    folder, other = copy("vision_understanding"), compact_oracle("u15")
    assert main(["parity", str(folder), str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [str(folder), str(other)]
    (row,) = told[str(folder)]
    assert row.keys() == {"case", "error", "tolerance", "at", "note", "passed"}
    assert row["tolerance"] == 1e-5
    assert 0 < row["error"] < 1e-6
    assert len(told[str(other)]) == 6


def test_one_failing_folder_of_two_fails(copy, compact_oracle, capsys):
    folder = copy("vision_understanding")
    edit_tensor(folder / "vision_understanding.safetensors", "tokens", nudged)
    assert main(["parity", str(folder), str(compact_oracle("u15"))]) == 1
    assert capsys.readouterr().out.count("FAILED") == 1


def refused(folder: Path, capsys) -> str:
    """The one line that `u1 parity` says of a folder, with exit status 2."""
    assert main(["parity", str(folder), "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("error: ").rstrip()


def test_a_case_without_its_tensors(copy, capsys):
    folder = copy("prefix_uncond")
    path = folder / "prefix_uncond.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(folder, capsys).startswith(f"{path}: cannot be read (")
    path.unlink()
    assert refused(folder, capsys) == f"{path}: the case is in the manifest, but its tensors are missing"


def test_a_case_that_lacks_something(copy, capsys):
    folder = copy("t2i_cfg4", "gen_step")
    edit_manifest(folder, lambda cases: {"gen_step": cases["gen_step"]})
    assert refused(folder, capsys) == f"{folder / 'manifest.json'}: there is no 'prefix_cond', which the case needs"
    edit_manifest(folder, lambda cases: {"t2i_x": {"prompt": "a"}})
    save_file({"initial_noise": torch.zeros(1)}, folder / "t2i_x.safetensors")
    assert (
        refused(folder, capsys) == f"{folder / 'manifest.json'}: t2i_x: there is no 'cfg_scale', which the case needs"
    )


def test_tensors_that_lack_something(copy, capsys):
    folder = copy("prefix_uncond")
    path = folder / "prefix_uncond.safetensors"
    save_file({"k.0": load_file(path)["k.0"]}, path)
    assert refused(folder, capsys) == f"{path}: there is no 'input_ids', which the case needs"


def test_a_picture_that_is_missing(copy, capsys):
    folder = copy("vision_understanding")
    (folder / "edit_input_0.png").unlink()
    assert refused(folder, capsys) == f"{folder / 'edit_input_0.png'}: there is no such file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops", "not the manifest of a parity folder (Expecting property name"),
        ('{"dtype": "float32"}', "not the manifest of a parity folder ('cases')"),
        ("[1]", "not the manifest of a parity folder ("),
        ('{"cases": ["prefix"]}', "not the manifest of a parity folder ("),
        ('{"cases": {}}', "has no cases, so there is nothing to compare"),
    ],
)
def test_a_broken_manifest(copy, capsys, text, message):
    folder = copy("prefix_uncond")
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    assert refused(folder, capsys).startswith(f"{folder / 'manifest.json'}: {message}")


def test_a_folder_that_is_none(tmp_path, capsys):
    assert "manifest.json: not the manifest of a parity folder (" in refused(tmp_path, capsys)


def test_a_case_of_an_unknown_kind(copy, capsys):
    folder = copy("prefix_uncond")
    edit_manifest(folder, lambda cases: {"audio": {}})
    assert refused(folder, capsys).startswith(f"{folder}: case 'audio' is of no known kind (prefix, gen_step, ")


def test_a_folder_without_its_model(copy, capsys):
    folder = copy("prefix_uncond")
    shutil.rmtree(folder / "model")
    assert str(folder / "model") in refused(folder, capsys)


def test_verdicts_come_one_by_one(copy):
    seen: list[Verdict] = []
    folder = copy("prefix_uncond", "vision_understanding")
    (folder / "vision_understanding.safetensors").unlink()
    with pytest.raises(U1Error, match="vision_understanding"):
        run_parity(folder, seen.append)
    assert [verdict.case for verdict in seen] == ["prefix_uncond"]


def test_relative_error():
    theirs = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), theirs) == pytest.approx(0.1)
    assert relative_error(theirs, theirs) == 0
    assert relative_error(torch.tensor([[3.0, 4.0]]), theirs) == float("inf")
    assert relative_error(torch.tensor([3.0, float("nan")]), theirs) == float("inf")
    assert not Verdict("x", relative_error(theirs, torch.tensor([3.0, float("nan")])), 1.0, "x").passed
