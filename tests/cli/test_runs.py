import json

from u1_core.cli.main import main
from u1_core.train.control import read_status


def test_a_detached_run_obeys_from_its_start_to_its_end(endless, tmp_path, capsys, until):
    folder = tmp_path / "runs" / "tiny"

    def told(*words):
        assert main([*words, "--out", str(tmp_path / "runs")]) == 0
        return capsys.readouterr().out

    def ask(word):
        assert told("runs", word, "tiny") == f"tiny: asked to {word}\n"

    def status():
        return read_status(folder)

    assert told("train", str(endless), "--detach").startswith("started as process ")
    try:
        until(lambda: status().get("step", 0) > 2)
        assert told("runs", "list").split()[:2] == ["tiny", "running"]

        ask("preview")
        base = folder / "previews" / "base_1.png"
        until(lambda: list((folder / "previews").glob("step_*_1.png")) and "preview" in _events(folder))
        (drawn,) = (folder / "previews").glob("step_*_1.png")
        step = int(drawn.name.split("_")[1])
        assert base.is_file()
        assert (folder / "checkpoints" / f"state_{step:06}.safetensors").is_file()  # saved before it was drawn

        ask("pause")
        until(lambda: status()["state"] == "paused")
        paused_at = status()["step"]
        assert told("runs", "tail", "tiny").splitlines()[-1].startswith(f"step {paused_at}: loss ")
        ask("resume")
        until(lambda: status()["step"] > paused_at)
    finally:
        ask("stop")
    until(lambda: status()["state"] == "stopped")
    stopped_at = status()["step"]
    assert (folder / "checkpoints" / f"state_{stopped_at:06}.safetensors").is_file()
    assert told("runs", "list").split()[:3] == ["tiny", "stopped", f"{stopped_at}/100000"]

    assert told("runs", "resume", "tiny").startswith("tiny: started again as process ")
    until(lambda: status()["state"] == "running" and status()["step"] > stopped_at)
    ask("stop")
    lines = told("runs", "tail", "tiny", "--follow").splitlines()  # until it has ended
    assert status()["state"] == "stopped"
    assert lines[-1].startswith(f"step {status()['step']}: loss ")
    steps = [one["step"] for one in _log(folder) if "event" not in one]
    assert steps == list(range(1, status()["step"] + 1))


def _log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _events(folder):
    return [one["event"] for one in _log(folder) if "event" in one]


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["runs", "list", "--out", str(tmp_path / "none")]) == 2
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "recipe.yaml").write_text("")
    assert main(["runs", "stop", "tiyn", "--out", str(tmp_path / "runs")]) == 2
    assert main(["runs", "stop", "tiny", "--out", str(tmp_path / "runs")]) == 2
    assert main(["runs", "tail", "--out", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2] for line in lines] == [
        "there is no such folder of runs; give it with --out",
        f"there is no run 'tiyn'; did you mean 'tiny'? (`u1 runs list --out {tmp_path / 'runs'}` shows them)",
        "the run is dead, so it cannot stop",
        f"say which run of {tmp_path / 'runs'}: tiny",
    ]


def test_a_detached_run_that_cannot_begin_says_why(endless, tmp_path, capsys):
    (tmp_path / "pictures" / "a.txt").unlink()
    assert main(["train", str(endless), "--detach"]) == 2
    assert "the run ended at once: " in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny").exists()
