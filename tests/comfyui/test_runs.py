"""Training while prompting: who gives way, what Cancel and Stop end, and what the routes refuse."""

import json
import statistics
import threading
import time
from contextlib import contextmanager
from urllib.parse import quote

PROMPTS = 100
AT_ONCE = 5
"""Prompts that are queued together; between two such lots the run has the machine to itself."""
STEPS = 120


def test_100_prompts_beside_a_run_have_their_pictures_and_the_lora_is_the_same_to_the_byte(
    server, base, status, training, sampling, until
):
    server.run(training("alone", STEPS))
    until(lambda: status("alone")["state"] == "finished", 60)
    started = time.monotonic()
    assert server.run(training("among", STEPS))["status"]["status_str"] == "success"
    assert time.monotonic() - started < 2
    steps, answers = [], []
    with polling(lambda: server.get("/queue"), every_s=0.05) as waits:
        for first in range(0, PROMPTS, AT_ONCE):
            before = status("among")["step"]
            until(lambda before=before: status("among")["step"] > before)
            queued = [server.queue(sampling(seed)) for seed in range(first, first + AT_ONCE)]
            answers += [server.wait(prompt) for prompt in queued]
            steps.append(status("among")["step"])
        # All had their pictures before the run was done, and it went on from lot to lot.
        assert steps == sorted(set(steps))
        assert steps[-1] < STEPS
        until(lambda: status("among")["state"] == "finished", 60)
    assert [answer["status"]["status_str"] for answer in answers] == ["success"] * PROMPTS
    drawn = {answer["outputs"]["3"]["images"][0]["filename"] for answer in answers}
    assert len(drawn) == PROMPTS
    assert statistics.median(waits) < 0.05
    for folder in ("output/u1_runs/{}", "models/loras/u1"):
        alone, among = (base / folder.format(name) / f"{name}.safetensors" for name in ("alone", "among"))
        assert among.read_bytes() == alone.read_bytes().replace(b"alone", b"among")


def test_cancel_ends_the_prompt_and_stop_the_run_within_a_step(server, base, status, training, sampling, until):
    server.run(training("cancelled_beside", 3000))
    until(lambda: status("cancelled_beside")["step"] >= 2)
    prompt = server.queue(sampling(99, steps=200))
    until(lambda: status("cancelled_beside")["state"] == "giving way")
    server.post("/interrupt")
    assert server.wait(prompt)["status"]["status_str"] == "error"
    reached = status("cancelled_beside")["step"]
    until(lambda: status("cancelled_beside")["step"] > reached)
    code, answer = server.post("/u1/runs/cancelled_beside/stop")
    ended = until(lambda: s if (s := status("cancelled_beside"))["state"] == "stopped" else None)
    assert code == 200
    assert ended["step"] - answer["status"]["step"] <= 1
    assert ended["lora"] == f"step_{ended['step']:06}.safetensors"


def test_stop_ends_a_run_however_much_is_queued(server, status, training, sampling, until):
    server.run(training("stopped_beside", 3000))
    until(lambda: status("stopped_beside")["step"] >= 2)
    queued = [server.queue(sampling(seed, steps=60)) for seed in range(8)]
    until(lambda: status("stopped_beside")["state"] == "giving way")
    assert server.post("/u1/runs/stopped_beside/stop")[0] == 200
    ended = until(lambda: s if (s := status("stopped_beside"))["state"] == "stopped" else None)
    assert json.loads(server.get("/queue"))["queue_pending"]
    assert ended["lora"] == f"step_{ended['step']:06}.safetensors"
    for prompt in queued:
        server.wait(prompt)


def test_a_prompt_may_wait_for_a_run_that_stands_in_line(server, status, training, until):
    server.run(training("in_front", 40))
    until(lambda: status("in_front")["step"] >= 1)
    assert server.run(training("behind_it", 3, wait=True))["status"]["status_str"] == "success"
    assert (status("in_front")["state"], status("behind_it")["state"]) == ("finished", "finished")


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


def test_a_run_may_have_any_name_that_a_folder_may(server, status, training, until):
    """Braces are what a route's own pattern would not match."""
    asked = quote("{100%} of été #1")
    server.run(training("{100%} of été #1", 3000))
    until(lambda: status(asked)["step"] >= 1)
    assert server.post(f"/u1/runs/{asked}/stop")[0] == 200
    until(lambda: status(asked)["state"] == "stopped")
    assert json.loads(server.get(f"/u1/runs/{asked}"))["points"]


def test_a_run_saves_itself_when_comfyui_is_closed(server, base, status, training, until):
    """In the middle of a step, whose pictures are fetched by threads of a pool."""
    server.run(training("closed", 1000, grad_accum=32))
    reached = until(lambda: status("closed")["step"])
    time.sleep(0.2)
    server.interrupt()
    server.start()
    left = status("closed")
    assert (left["state"], left["resumable"], left["message"]) == ("stopped", True, "")
    assert left["step"] - reached in (1, 2)
    assert left["lora"] == f"step_{left['step']:06}.safetensors"
    folder = base / "output" / "u1_runs" / "closed"
    assert (folder / "checkpoints" / f"state_{left['step']:06}.safetensors").is_file()
    assert not (folder / "crash.txt").exists()


def test_routes_take_known_runs_and_actions_from_the_same_page_only(server):
    assert server.post("/u1/runs/nobody/stop")[0] == 404
    assert server.post("/u1/runs/second/erase") == (
        400,
        {"error": "'erase' is none of pause, resume, stop, save, preview"},
    )
    assert server.post("/u1/runs/second/stop", {"path": "/"})[0] == 413
    assert server.post("/u1/runs/second/stop", Origin="http://elsewhere.example")[0] == 403
    assert server.post("/u1/runs/..%2f..%2fetc/stop")[0] == 404


@contextmanager
def polling(ask, every_s: float):
    """Ask again and again on another thread until the end of the block; yields the list of seconds it took."""
    waits: list[float] = []
    done = threading.Event()

    def work() -> None:
        while not done.wait(every_s):
            asked = time.monotonic()
            ask()
            waits.append(time.monotonic() - asked)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield waits
    finally:
        done.set()
        thread.join()
