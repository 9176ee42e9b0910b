import pytest

from u1_core.cli import plan as module
from u1_core.cli.main import main
from u1_core.plan.costs import Bus
from u1_core.plan.estimate import Rates, estimate
from u1_core.plan.step_model import StepModel

GIB = 2**30


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose pictures are not there yet."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"run_name: tiny\ndata: {{data_dir: {tmp_path / 'nowhere'}}}\n", encoding="utf-8")
    return str(path)


def test_a_card_that_is_not_here(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "host_free_bytes", lambda: 64 * GIB)
    assert main(["plan", recipe, "--model", "U1-8B", "--card-gb", "12", "--budget", "10GB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "u1, adamw, 286,289,920 trained; 2048x2048 and prompts of 320 tokens, as there is no "
        f"{tmp_path / 'nowhere'} to look at"
    )
    assert lines[1] == f"estimated for a card of 12 GiB and {Rates()}"
    assert lines[3] == "budget 9.31 GiB"
    assert lines[4].startswith("predicted: ")
    assert float(lines[4].split()[5]) <= 9.31
    assert any(line.startswith("    12 GiB") for line in lines)


def test_the_data_are_looked_at_and_the_model_is_not_loaded(endless, capsys, monkeypatch):
    monkeypatch.setattr(module, "host_free_bytes", lambda: 64 * GIB)
    assert main(["plan", str(endless), "--card-gb", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("u1, adamw, ")
    assert "; 1 pictures, at most 32x32, prompts of at most " in lines[0]
    assert lines[4].endswith(" GiB of the card at the peak")


def test_a_card_that_is_here_is_measured(recipe, capsys, monkeypatch):
    def measured(device, work):
        return StepModel.of(work, estimate(work, Rates()), Bus(20e9, 10e9, 64 * GIB), 64 * GIB)

    monkeypatch.setattr(module, "choose_device", module.torch.device)
    monkeypatch.setattr(module, "model_here", measured)
    monkeypatch.setattr(module, "free_bytes", lambda device: 20 * GIB)
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda device: "Card 9000")
    assert main(["plan", recipe, "--model", "U1-8B", "--device", "cuda"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "measured on this Card 9000"
    assert lines[3] == "budget auto"
    assert float(lines[4].split()[5]) <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model", "U1-8B", "--device", "cpu"],
            "u1 plan: this PyTorch sees no CUDA card; give --card-gb to plan for",
        ),
        (["--card-gb", "12"], "names no model; give --model (U1-8B, U1.5-8B, U1-A3B, or a folder)"),
        (["--model", "U1-8B", "--card-gb", "12", "--budget", "lwo"], "budget 'lwo' is neither an amount of memory"),
        (["--model", "U1-8B", "--card-gb", "0"], "--card-gb 0: expected the size of a card in GiB, such as 12"),
        (["--model", "U1-8B", "--card-gb", "-3"], "--card-gb -3: expected the size of a card in GiB, such as 12"),
        (["--model", "nan", "--card-gb", "12"], "nor a hub id (owner/name); did you mean 'nano'?"),
        (["--model", "U1-8B", "--card-gb", "2"], "budget auto: 1.88 GiB may be taken on the card and at least"),
    ],
)
def test_refused(recipe, capsys, options, message):
    assert main(["plan", recipe, *options]) == 2
    assert message in capsys.readouterr().err
