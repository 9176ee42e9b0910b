"""ComfyUI's memory management and ours: who gives memory back, when, and who keeps it."""

import json
import subprocess
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def said(comfyui) -> dict:
    command = comfyui.command(Path(__file__).with_name("memory_probe.py"), PACK, "--cpu")
    done = subprocess.run(command, cwd=comfyui.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_under_pressure_no_more_is_given_back_than_another_model_needs(said):
    assert 5_000_000 <= said["parked_under_pressure"] < 8_000_000 < said["bytes"]


def test_a_run_takes_its_weights_back_when_no_prompt_is_there_or_one_waits_for_it(said):
    assert said["taken_back_while_a_prompt_runs"] is False
    assert said["taken_back_by_a_run_that_is_awaited"] is True
    assert said["parked_then"] == 0


def test_unload_all_takes_what_a_waiting_run_holds_and_brings_it_back_bit_for_bit(said):
    assert said["parked_by_unload_all"] == said["bytes"]
    assert said["same_bits"]


def test_unload_all_leaves_a_run_at_work_its_weights_and_lets_go_of_those_nobody_uses(said):
    assert said["parked_by_unload_all_while_a_run_is_at_work"] == 0
    assert said["registered_again"]
    assert said["still_registered_when_others_are_unloaded"]
    assert said["let_go"]
