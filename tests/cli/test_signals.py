"""Real processes that are told to end: by a signal, by Ctrl-C, by a terminal that goes away, by a pipe nobody reads."""

import os
import signal
import subprocess
import sys

import pytest

from u1_core.cli import detach
from u1_core.cli.main import NOBODY_READS
from u1_core.cli.train import _ends_as_ctrl_c
from u1_core.lora.files import read_lora
from u1_core.train.checkpoint import read_state, state_files
from u1_core.train.control import read_status

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
COMMAND = [sys.executable, "-c", f"import torch; torch.set_num_threads(1); {detach.COMMAND}"]


@pytest.fixture
def started():
    """(*arguments, **options) -> the process of that command; none outlives the test."""
    processes = []

    def start(*arguments, **options):
        processes.append(subprocess.Popen([*COMMAND, *map(str, arguments)], text=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def newest(folder):
    return read_state(state_files(folder / "checkpoints")[0])


def test_sigterm_and_ctrl_c_save_and_the_run_goes_on(endless, tmp_path, until, started):
    folder, before = tmp_path / "runs" / "tiny", 0
    for number, more in ((signal.SIGTERM, []), (signal.SIGINT, ["--resume"])):
        process = started("train", endless, *more, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda least=before + 2: read_status(folder).get("step", 0) > least)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "stopping after this step" in err
        assert "Traceback" not in err
        state = newest(folder)
        assert out.startswith(f"stopped after {state.step} of 100000 steps")
        assert state.step == read_status(folder)["step"] > before
        assert read_status(folder)["state"] == "stopped"
        assert read_lora(folder / "checkpoints" / f"step_{state.step:06}.safetensors").adapter.modules
        before = state.step


def test_a_terminal_that_goes_away_leaves_a_saved_run(endless, tmp_path, until, started):
    """It hangs up twice, as shells do, and there is nothing any more to print to."""
    import pty

    ours, theirs = pty.openpty()
    process = started("train", endless, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    folder = tmp_path / "runs" / "tiny"
    until(lambda: read_status(folder).get("step", 0) > 2)
    os.close(ours)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    process.wait(60)
    assert read_status(folder)["state"] == "stopped"
    assert newest(folder).step == read_status(folder)["step"]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _ends_as_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_pipe_that_nobody_reads_ends_in_silence(started):
    process = started("recipe", "show", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", NOBODY_READS)
