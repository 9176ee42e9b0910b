"""Training while prompting: who gives way, what Cancel and Stop end, and what the routes refuse."""

import json
import statistics
import time

import pytest
from safetensors.torch import load_file


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


MODEL = node("LoadU1Bf16Offload", model="built-in tiny U1", dtype="auto")
DRAWN = {"size": "1:1", "width": 64, "height": 64, "megapixels": 0.0, "cfg": 1.0, "norm": "none", "shift": 3.0}
DRAWN |= {"interval_from": 0.0, "interval_to": 1.0, "think": False, "batch": 1}


def sampling(seed: int, steps: int = 2) -> dict:
    drawing = node("U1Sample", model=["1", 0], prompt="a red house", steps=steps, seed=seed, **DRAWN)
    return {"1": MODEL, "2": drawing, "3": node("PreviewImage", images=["2", 0])}


@pytest.fixture
def status(server):
    """Run id -> its status."""
    return lambda run: json.loads(server.get(f"/u1/runs/{run}"))["status"]


def test_a_run_goes_on_beside_prompts_and_comes_to_the_same_lora(server, base, status, training, until):
    server.run(training("alone", 60))
    until(lambda: status("alone")["state"] == "finished")
    started = time.monotonic()
    assert server.run(training("beside", 60))["status"]["status_str"] == "success"
    assert time.monotonic() - started < 2
    until(lambda: status("beside")["step"] >= 3)
    prompts = [server.queue(sampling(seed)) for seed in range(8)]
    waits = []
    for _ in range(40):
        asked = time.monotonic()
        server.get("/queue")
        waits.append(time.monotonic() - asked)
    assert statistics.median(waits) < 0.05
    for prompt in prompts:
        assert server.wait(prompt)["status"]["status_str"] == "success"
    assert status("beside")["step"] < 60  # the prompts had their pictures before the run was done
    until(lambda: status("beside")["state"] == "finished")
    ours, alone = (load_file(base / "output/u1_runs" / name / f"{name}.safetensors") for name in ("beside", "alone"))
    assert all(ours[key].equal(alone[key]) for key in alone)


def test_cancel_ends_the_prompt_and_not_the_run(server, status, training, until):
    server.run(training("cancelled_beside", 3000))
    until(lambda: status("cancelled_beside")["step"] >= 2)
    prompt = server.queue(sampling(99, steps=200))
    until(lambda: status("cancelled_beside")["state"] == "giving way")
    server.post("/interrupt")
    assert server.wait(prompt)["status"]["status_str"] == "error"
    reached = status("cancelled_beside")["step"]
    until(lambda: status("cancelled_beside")["step"] > reached)
    assert server.post("/u1/runs/cancelled_beside/stop")[0] == 200
    ended = until(lambda: s if (s := status("cancelled_beside"))["state"] == "stopped" else None)
    assert ended["lora"] == f"step_{ended['step']:06}.safetensors"


def test_pause_holds_a_run_and_the_next_waits_in_line(server, status, training, until):
    server.run(training("first", 3000))
    until(lambda: status("first")["step"] >= 1)
    assert server.post("/u1/runs/first/pause")[0] == 200
    until(lambda: status("first")["state"] == "paused")
    server.run(training("second", 5))
    assert status("second")["state"] == "queued"
    held = status("first")["step"]
    time.sleep(0.3)
    assert status("first")["step"] == held
    server.post("/u1/runs/first/resume")
    until(lambda: status("first")["step"] > held)
    server.post("/u1/runs/first/stop")
    until(lambda: status("second")["state"] == "finished")
    history = json.loads(server.get("/u1/runs/second"))["points"]
    assert [step for step, _ in history] == [1, 2, 3, 4, 5]


def test_routes_take_known_runs_and_actions_from_the_same_page_only(server):
    assert server.post("/u1/runs/nobody/stop")[0] == 404
    assert server.post("/u1/runs/second/erase") == (400, {"error": "'erase' is none of pause, resume, stop"})
    assert server.post("/u1/runs/second/stop", {"path": "/"})[0] == 413
    assert server.post("/u1/runs/second/stop", Origin="http://elsewhere.example")[0] == 403
    assert server.post("/u1/runs/..%2f..%2fetc/stop")[0] == 404
