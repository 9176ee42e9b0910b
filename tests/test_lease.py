import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from u1_core.lease import Lease


def test_a_waiting_thread_is_next_though_the_holder_asks_again_at_once():
    """A trainer that releases and takes the lease without a pause must not starve a sampler."""
    lease, order, waiting = Lease(), [], threading.Event()

    def sampler():
        waiting.set()
        with lease:
            order.append("sampler")

    with lease:
        thread = threading.Thread(target=sampler)
        thread.start()
        assert waiting.wait(10)
        while len(lease._queue) == 0:
            pass
    with lease:
        order.append("trainer")
    thread.join(10)
    assert order == ["sampler", "trainer"]


def test_its_holder_may_take_it_again():
    lease = Lease()
    with lease, lease:
        pass
    with lease:
        pass


def test_only_the_holder_may_release():
    lease = Lease()
    lease.acquire()
    with ThreadPoolExecutor(1) as other, pytest.raises(RuntimeError, match="held by another thread"):
        other.submit(lease.release).result(10)
    lease.release()
    with pytest.raises(RuntimeError, match="or by none"):
        lease.release()


def test_never_two_at_once():
    lease, inside, most = Lease(), [0], [0]

    def visit():
        for _ in range(200):
            with lease:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]


def test_others_may_have_it_while_the_device_is_not_ready():
    lease, had, asked = Lease(), threading.Event(), []

    def other() -> None:
        with lease.as_it_is():
            had.set()

    def ready() -> bool:
        if not asked:
            threading.Thread(target=other).start()
        asked.append(had.is_set())
        return had.is_set()

    lease.ready = ready
    with lease:
        assert asked[0] is False
        assert asked[-1] is True


def test_it_is_free_after_asking_went_wrong():
    lease = Lease()

    def ready() -> bool:
        raise MemoryError

    lease.ready = ready
    with pytest.raises(MemoryError):
        lease.acquire()
    with ThreadPoolExecutor(1) as other, lease.as_it_is():
        assert not other.submit(lambda: lease._owner == threading.get_ident()).result(10)


def test_who_holds_it_is_not_asked_again():
    lease, asked = Lease(), []
    lease.ready = lambda: asked.append(1) or True
    with lease, lease:
        pass
    assert asked == [1]


def test_who_waits_can_be_told_to_give_up_and_keeps_nobody_from_it():
    lease, asked = Lease(), []

    def cancelled() -> None:
        asked.append(1)
        raise InterruptedError

    def wait() -> None:
        with lease.held(cancelled):
            raise AssertionError("it was not free")

    with lease, ThreadPoolExecutor(1) as other, pytest.raises(InterruptedError):
        other.submit(wait).result(10)
    assert asked == [1]
    with lease.held(cancelled):
        assert asked == [1]
