import gc
import weakref

import pytest

from u1_core.errors import U1Error
from u1_core.jobs import Job


def kinds(job):
    return [event.kind for event in job.events()]


def counting(job, steps=1000):
    done = 0
    while done < steps and job.go_on():
        done += 1
        job.emit("step", step=done)
    return done


def test_runs_to_the_end_and_tells_each_step():
    job = Job(lambda job: counting(job, 3)).start()
    assert job.wait(10)
    assert (job.state, job.result, job.error) == ("finished", 3, None)
    assert kinds(job) == ["started", "step", "step", "step", "finished"]
    assert [event.data for event in job.events(after=1)][:2] == [{"step": 1}, {"step": 2}]
    assert [event.number for event in job.events()] == [1, 2, 3, 4, 5]


def test_pause_holds_the_work_until_resume():
    job = Job(lambda job: counting(job, 5))
    job.pause()
    job.start()
    events = job.follow()
    assert [next(events).kind for _ in range(2)] == ["started", "paused"]
    assert job.state == "paused"
    assert not job.wait(0.05)
    assert "step" not in kinds(job)
    job.resume()
    assert job.wait(10)
    assert kinds(job) == ["started", "paused", "resumed", *["step"] * 5, "finished"]


@pytest.mark.parametrize("paused", [False, True])
def test_stop_ends_at_a_step_boundary(paused):
    job = Job(lambda job: counting(job, 10**9))
    if paused:
        job.pause()
    job.start()
    for event in job.follow():
        if event.kind in ("paused", "step"):
            break
    job.stop()
    assert job.wait(10)
    assert (job.state, kinds(job)[-1]) == ("stopped", "stopped")
    assert job.result == job.events()[-2].data.get("step", 0)
    assert not paused or kinds(job) == ["started", "paused", "stopped"]


def test_work_that_ends_by_itself_is_finished_though_stop_came_late():
    def work(job):
        counting(job, 2)
        job.stop()

    job = Job(work).start()
    assert job.wait(10)
    assert job.state == "finished"


def test_a_user_error_is_one_line_and_other_errors_keep_their_traceback():
    def missing(job):
        raise U1Error("pictures/: there is no such folder")

    job = Job(missing).start()
    assert job.wait(10)
    assert job.state == "failed"
    assert job.events()[-1].data == {"message": "pictures/: there is no such folder"}
    assert job.traceback == ""

    job = Job(lambda job: 1 / 0).start()
    assert job.wait(10)
    assert isinstance(job.error, ZeroDivisionError)
    assert "1 / 0" in job.traceback


def test_follow_ends_with_the_job_and_starts_from_the_beginning_whenever_it_is_asked():
    job = Job(lambda job: counting(job, 2)).start()
    during = [event.kind for event in job.follow()]
    after = [event.kind for event in job.follow()]
    assert during == after == ["started", "step", "step", "finished"]


def test_a_failing_watcher_does_not_end_the_run(caplog):
    heard = []

    def broken(event):
        heard.append(event.kind)
        raise ValueError("no screen")

    job = Job(lambda job: counting(job, 1))
    job.subscribe(broken)
    job.start()
    assert job.wait(10)
    assert job.state == "finished"
    assert heard == ["started", "step", "finished"]
    assert "no screen" in caplog.text


def test_what_failed_work_held_is_let_go():
    class Weights:
        pass

    held = []

    def work(job):
        weights = Weights()
        held.append(weakref.ref(weights))
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("then") from None

    job = Job(work).start()
    assert job.wait(10)
    gc.collect()
    assert "ValueError: then" in job.traceback
    assert held[0]() is None
