"""Runs in the background as the nodes start them: who waits for whom, what is resumed, looked at while it trains, and
said when it crashes."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from u1_core.errors import U1Error
from u1_core.workflow import runs
from u1_core.workflow.dataset import dataset
from u1_core.workflow.handles import Dataset, LoraSpec, LoraUse, Model
from u1_core.workflow.host import Host
from u1_core.workflow.loras import load_model
from u1_core.workflow.studio import Places, Studio, Watch
from u1_core.workflow.training import act_on_run, train_style_lora, training_run

NOBODY = Watch()


class Neighbour(Host):
    """Somebody else on the device, who takes it and gives it back as the test says."""

    def __init__(self) -> None:
        self.wants_it, self.holds_it = threading.Event(), threading.Event()
        self.heard: list[dict] = []
        self.on_news: Callable[[dict], None] = lambda news: None

    def busy(self) -> bool:
        return self.wants_it.is_set()

    def take_back(self, session, awaited: bool) -> bool:
        return awaited or not self.holds_it.is_set()

    def tell(self, news: dict) -> None:
        self.heard.append(news)
        self.on_news(news)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Places:
    root = tmp_path_factory.mktemp("studio")
    folder = root / "input" / "walls"
    folder.mkdir(parents=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a wall painted all over in {colour}", encoding="utf-8")
    return Places((root / "models",), (root / "loras",), root / "out", root / "cache", root / "input")


@pytest.fixture
def studio(places, tmp_path):
    """With a folder of runs of its own."""
    studio = Studio(replace(places, output=tmp_path, loras=(tmp_path / "loras",)), "cpu", Neighbour())
    yield studio
    studio.host.wants_it.clear()
    studio.host.holds_it.clear()
    studio.runs.stop_all(30)


@pytest.fixture
def model(studio) -> Model:
    return load_model(studio, Watch(), model="built-in tiny U1").values[0]


@pytest.fixture
def start(studio, model) -> Callable[..., str]:
    """Start a run of 6 steps -> its id."""
    pictures: Dataset = dataset(studio, Watch(), folder="walls").values[0]

    def start(name: str, watch: Watch = NOBODY, **more) -> str:
        fields = {"steps": 6, "lr": 1e-2, "train_heads": False, "checkpoint_every": 0}
        fields |= {"validate_every": 0, "preview_every": 0, "spec": LoraSpec("attn=r2")}
        given = train_style_lora(studio, watch, model=model, dataset=pictures, name=name, **(fields | more))
        return given.values[1]

    return start


def until(condition: Callable, limit_s: float = 30):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError


def within(limit_s: float) -> Callable[[], None]:
    """A check that raises once the time is over."""
    end = time.monotonic() + limit_s

    def check() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    return check


def state(studio: Studio, run: str) -> str:
    return studio.runs.status(run).state


def result(studio: Studio, run: str) -> dict:
    return load_file(studio.runs.folder(run) / f"{run}.safetensors")


def at_step(studio: Studio, run: str, step: int, act: Callable[[], object]) -> None:
    """Have `act` done by the run's own thread once it has come to a step: before it takes the next one."""
    done = []

    def on_news(news: dict) -> None:
        if news["id"] == run and news["status"]["step"] >= step and not done:
            done.append(act())

    studio.runs._host.on_news = on_news


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch):
    monkeypatch.setattr("u1_core.workflow.run.SENT_EVERY_S", 0.0)


def test_a_stopped_run_is_resumed_by_a_later_process_to_the_same_bytes(studio, start):
    undisturbed = start("undisturbed", wait=True)
    at_step(studio, "halved", 3, lambda: studio.runs.act("halved", "stop"))
    run = start("halved", wait=True)
    stopped = studio.runs.status(run)
    assert (stopped.state, stopped.step, stopped.lora, stopped.resumable) == (
        "stopped",
        3,
        "step_000003.safetensors",
        True,
    )
    later = Studio(studio.places, "cpu")
    assert (later.runs.status(run).state, later.runs.status(run).step) == ("stopped", 3)
    act_on_run(later, run, "resume")
    later.runs.wait(run, lambda: None)
    assert later.runs.status(run).state == "finished"
    assert [step for step, _ in later.runs.history(run)[0]] == [1, 2, 3, 4, 5, 6]
    ours, theirs = result(later, run), result(studio, undisturbed)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_node_goes_on_with_a_run_of_its_name_if_it_is_told_to(studio, start):
    at_step(studio, "again", 2, lambda: studio.runs.act("again", "stop"))
    assert start("again", wait=True) == "again"
    studio.runs._host.on_news = lambda news: None
    assert start("again", wait=True, resume=True) == "again"
    assert studio.runs.status("again").step == 6
    assert start("again", wait=True, resume=True) == "again"  # it has come to its end: nothing is done twice
    assert start("again", wait=True) == "again-2"


def test_a_run_that_ended_before_it_had_a_folder_is_begun_again_under_its_name(studio, start, monkeypatch):
    def fail(*_: object) -> None:
        raise U1Error("there is no room")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", fail)
        with pytest.raises(U1Error, match="run failing: there is no room"):
            start("failing", wait=True)
    assert start("failing", wait=True, resume=True) == "failing"
    assert studio.runs.status("failing").state == "finished"
    at_step(studio, "ahead", 1, studio.host.wants_it.set)
    start("ahead")
    until(lambda: state(studio, "ahead") == "giving way")
    start("in_line")
    studio.runs.act("in_line", "stop")
    until(lambda: state(studio, "in_line") == "stopped")
    assert start("in_line", resume=True) == "in_line"
    assert start("in_line") == "in_line-2"  # that one is going
    studio.host.wants_it.clear()
    until(lambda: state(studio, "in_line-2") == "finished")
    assert state(studio, "in_line") == "finished"


def test_a_node_that_waits_for_its_run_is_shown_its_steps_and_the_run_s_news_name_the_node(studio, start):
    seen = []
    watch = Watch(on_progress=lambda done, total: seen.append((done, total)), node="12:7")
    assert start("watched", watch=watch, wait=True) == "watched"
    of_the_run = [pair for pair in seen if pair[1] == 6]
    assert of_the_run == sorted(set(of_the_run))
    assert of_the_run[-1] == (6, 6)
    news = studio.host.heard
    assert {told["node"] for told in news} == {"12:7"}
    assert news[0]["status"]["state"] == "queued"


def test_a_run_gives_way_and_its_live_weights_can_be_used_meanwhile(studio, start, model):
    host = studio.host
    at_step(studio, "live", 2, host.wants_it.set)
    run = start("live")
    until(lambda: state(studio, run) == "giving way")
    given = training_run(studio, Watch(), name=run, live=True, model=model)
    assert given.text == "live: giving way, step 2 of 6, live weights"
    with studio.using(given.values[0], Watch()) as session:
        (used,) = session.adapters
    host.on_news = lambda news: None
    host.wants_it.clear()
    until(lambda: state(studio, run) == "finished")
    assert used.name == "live at step 2"
    at_the_end = studio.adapter(LoraUse("", live=run))
    changed = [path for path, module in used.modules.items() if not module.up.equal(at_the_end.modules[path].up)]
    assert sorted(changed) == sorted(used.modules)


def test_a_run_waits_while_its_weights_are_not_to_be_had(studio, start):
    host = studio.host
    at_step(studio, "held", 2, host.holds_it.set)
    run = start("held")
    until(lambda: studio.runs.status(run).step == 2)
    time.sleep(0.2)
    assert studio.runs.status(run).step == 2
    with studio.runs.sessions()[0].lease:  # others may use the device meanwhile
        pass
    host.on_news = lambda news: None
    host.holds_it.clear()
    until(lambda: state(studio, run) == "finished")


def test_a_run_that_waits_for_the_device_saves_and_ends_at_once_when_it_is_stopped(studio, start):
    host = studio.host
    at_step(studio, "waiting", 2, host.holds_it.set)
    run = start("waiting")
    until(lambda: studio.runs.status(run).step == 2)
    time.sleep(0.1)
    studio.runs.act(run, "stop")
    until(lambda: state(studio, run) == "stopped")
    stopped = studio.runs.status(run)
    assert (stopped.step, stopped.lora, stopped.resumable) == (2, "step_000002.safetensors", True)
    assert host.holds_it.is_set()
    unbegun = start("unbegun")
    until(lambda: state(studio, unbegun) == "preparing")
    time.sleep(0.1)
    studio.runs.act(unbegun, "stop")
    until(lambda: state(studio, unbegun) == "stopped")
    assert not (studio.runs.root / unbegun).exists()


def test_runs_take_turns_in_the_order_they_were_started_and_one_in_line_can_be_stopped(studio, start):
    host = studio.host
    at_step(studio, "first", 1, host.wants_it.set)
    for name in ("first", "second", "third"):
        start(name)
    until(lambda: state(studio, "first") == "giving way")
    assert (state(studio, "second"), state(studio, "third")) == ("queued", "queued")
    studio.runs.act("second", "stop")
    until(lambda: state(studio, "second") == "stopped")
    assert not studio.runs.status("second").resumable
    host.on_news = lambda news: None
    host.wants_it.clear()
    until(lambda: state(studio, "third") == "finished")
    assert state(studio, "first") == "finished"
    assert not (studio.runs.root / "second").exists()


def test_who_waits_for_a_run_in_line_does_not_hold_up_those_before_it(studio, start):
    """As ComfyUI's prompts do: the host is busy for as long as a prompt waits."""
    host = studio.host
    at_step(studio, "ahead", 1, host.wants_it.set)
    start("ahead")
    until(lambda: state(studio, "ahead") == "giving way")
    start("behind")
    studio.runs.wait("behind", within(20))
    assert (state(studio, "ahead"), state(studio, "behind")) == ("finished", "finished")
    assert host.wants_it.is_set()


def test_who_gives_up_waiting_has_the_runs_give_way_again(studio, start):
    host = studio.host
    at_step(studio, "first", 1, host.wants_it.set)
    start("first", steps=100_000)
    start("second")
    until(lambda: state(studio, "first") == "giving way")

    def check() -> None:
        if studio.runs.status("first").step > 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        studio.runs.wait("second", check)
    until(lambda: state(studio, "first") == "giving way")


def test_a_run_of_the_longest_name_comes_to_its_end(studio, start):
    longest = "n" * 200
    assert start(longest, steps=2, checkpoint_every=1, train_heads=True, wait=True) == longest
    (full, lora) = sorted((studio.places.loras[0] / "u1").iterdir())
    assert (full.name, lora.name) == (f"{longest}.full.safetensors", f"{longest}.safetensors")


def test_save_now_and_preview_now(studio, start):
    run = start("asked", steps=100_000, preview_steps=2, preview_cfg=1.0)
    until(lambda: studio.runs.status(run).step >= 1)
    studio.runs.act(run, "save")
    saved = until(lambda: studio.runs.status(run).lora)
    assert (studio.runs.folder(run) / "checkpoints" / saved).is_file()
    studio.runs.act(run, "preview")
    (mark,) = until(lambda: studio.runs.history(run)[1])
    assert mark["prompts"] == ["a wall painted all over in blue", "a wall painted all over in red"]
    for name in (*mark["files"], *mark["base_files"]):
        with Image.open(studio.runs.preview(run, name)) as picture:
            assert picture.size == (128, 128)
    studio.runs.act(run, "stop")
    until(lambda: state(studio, run) == "stopped")


def test_a_crash_is_one_line_and_a_file(studio, start, monkeypatch):
    def train(*_: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(runs, "train", train)
    run = start("crashed")
    until(lambda: state(studio, run) == "failed")
    message = studio.runs.status(run).message
    assert message == "ZeroDivisionError('two\\nlines') (crashed.crash.txt has the whole of it)"
    told = (studio.runs.root / "crashed.crash.txt").read_text(encoding="utf-8")
    assert told.startswith("Traceback")
    assert "test_training.py" in told


def test_what_cannot_be_asked_of_a_run_is_said(studio, start):
    run = start("done", wait=True)
    for action, message in (
        ("erase", "'erase' is none of pause, resume, stop, save, preview"),
        ("save", "the run is finished, so it cannot save"),
        ("resume", "the run is finished, so it cannot resume"),
    ):
        with pytest.raises(U1Error, match=message):
            act_on_run(studio, run, action)
    with pytest.raises(U1Error, match="there is no run 'don'; did you mean 'done'"):
        act_on_run(studio, "don", "stop")
    with pytest.raises(U1Error, match="turn live off for step 3"):
        training_run(studio, Watch(), name=run, live=True, step=3)


def test_a_run_leaves_what_it_was_started_with(studio, start):
    run = start("kept", wait=True)
    left = json.loads((studio.runs.folder(run) / "model.json").read_text(encoding="utf-8"))
    assert (left["name"], left["dtype"], left["budget"]) == ("built-in tiny U1", "auto", "auto")
    assert Path(left["path"]).is_dir()
