import json
import os
import time

import pytest

from u1_core.errors import U1Error
from u1_core.jobs import Event, Job
from u1_core.train.control import SILENT_S, Control, alive, ask, read_status
from u1_core.train.run_log import TAIL_BYTES


@pytest.fixture
def job():
    return Job(lambda job: None)


def test_it_tells_of_steps_and_how_it_ended(tmp_path, job):
    with Control(tmp_path, job):
        job.emit("step", step=3, steps=9, loss=0.5)
        assert alive(tmp_path)
    assert read_status(tmp_path) == {"pid": os.getpid(), "step": 3, "steps": 9, "loss": 0.5, "state": "stopped"}
    with pytest.raises(U1Error), Control(tmp_path, job):
        raise U1Error("the loss is none")
    assert read_status(tmp_path)["reason"] == "the loss is none"


def test_a_run_that_was_done_already_is_finished(tmp_path, job):
    with Control(tmp_path, job):
        job.emit("resumed_from", step=9, steps=9)
    assert read_status(tmp_path)["state"] == "finished"


def test_silence_is_death(tmp_path, job):
    control = Control(tmp_path, job)
    control._tell("running")
    assert alive(tmp_path)
    late = time.time() - SILENT_S - 1
    os.utime(tmp_path / "status.json", (late, late))
    assert read_status(tmp_path)["state"] == "dead"
    assert read_status(tmp_path / "nowhere") == {"state": "dead"}


def test_a_run_that_was_killed_stands_where_its_log_ends(tmp_path, job):
    control = Control(tmp_path, job)
    control._hear(Event(1, "step", 0.0, {"step": 3, "steps": 9, "loss": 0.5}))
    control._tell("running")
    records = [{"step": 1, "loss": 9.0, "x": "y" * TAIL_BYTES}, {"step": 7, "loss": 0.2}, {"step": 7, "loss": 0.4}]
    lines = [json.dumps(record) for record in [*records, {"step": 7, "event": "preview"}]]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 8, "lo']), encoding="utf-8")
    assert read_status(tmp_path)["step"] == 3  # while it lives it speaks for itself
    late = time.time() - SILENT_S - 1
    os.utime(tmp_path / "status.json", (late, late))
    facts = read_status(tmp_path)
    assert (facts["state"], facts["step"], facts["steps"], facts["loss"]) == ("dead", 7, 9, pytest.approx(0.3))


def test_on_a_full_disk_a_run_is_still_alive_and_a_word_that_cannot_be_left_is_an_error(tmp_path, job, full_disk):
    control = Control(tmp_path, job)
    control._tell("running")
    late = time.time() - SILENT_S - 1
    os.utime(tmp_path / "status.json", (late, late))
    with full_disk("status.json", 10), full_disk("control"):
        control._tell("running")
        assert alive(tmp_path)
        with pytest.raises(U1Error, match=r"control: cannot be written \(No space left on device\)"):
            ask(tmp_path, "stop")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    ask(tmp_path, "stop")
    control._obey()
    assert job._stop_asked


def test_a_word_that_is_no_utf_8_is_passed_over(tmp_path, job):
    """As Windows PowerShell's `echo pause > control` writes it."""
    control = Control(tmp_path, job)
    (tmp_path / "control").write_bytes("pause".encode("utf-16"))
    control._obey()
    assert not (tmp_path / "control").exists()
    (tmp_path / "control").write_bytes(b"save")
    control._obey()
    assert control.save_asked.is_set()
