import json
from dataclasses import replace

import pytest

from u1_core.cli.main import main
from u1_core.train.recipe import Validation


@pytest.fixture
def finished(models, session, recipe, run, with_train):
    """A run's folder, and the last validation in its log."""
    recipe = with_train(replace(recipe, model=str(models["u1"])), steps=12, lr=5e-3)
    recipe = replace(recipe, validation=Validation(every=12, pictures=2, timesteps=4, split=0.2))
    folder = run(session, recipe).result.folder
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return folder, [record for record in records if record.get("event") == "validation"][-1]


def test_an_export_is_judged_by_the_questions_of_the_run(finished, tmp_path, capsys):
    folder, last = finished
    shares = {}
    for rank in (1, 10_000):
        command = ["lora", "export", str(folder), "--fold-full", "--device", "cpu", "--rank", str(rank), "--json"]
        assert main([*command, "--out", str(tmp_path / f"{rank}.safetensors")]) == 0
        shares[rank] = json.loads(capsys.readouterr().out)["validation"]
    assert shares[1]["the run"] == pytest.approx(last["held_out"]["x0"], rel=1e-9)
    run, low, high = shares[1]["the run"]["percent"], *(shares[rank]["the export"]["percent"] for rank in (1, 10_000))
    assert run < 95
    # What is left at full rank are the head's and the patch embedding's biases.
    assert abs(high - run) < 0.25 * (low - run)


def test_it_is_printed(finished, tmp_path, capsys):
    folder, _ = finished
    out = tmp_path / "out.safetensors"
    assert (
        main(["lora", "export", str(folder), "--fold-full", "--device", "cpu", "--rank", "4", "--out", str(out)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("  validation, the run: ")
    assert lines[-1].startswith("  validation, the export: ")
    assert "% of the base model's x0-MSE (" in lines[-1]


def test_a_run_without_results_is_told(finished, capsys, tmp_path):
    folder, _ = finished
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert main(["lora", "export", str(folder), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "is not finished, it has no tiny.safetensors; give a LoRA file instead" in capsys.readouterr().err
