"""Which worker gets a request."""

from contextlib import ExitStack
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.fleet import ModelInfo, WorkerInfo
from chatfleet.dispatch.policy import least_loaded
from chatfleet.dispatch.view import AVOID_S, Worker


def worker() -> Worker:
    return Worker(WorkerInfo(worker_id="w", url="http://w:1", models=(ModelInfo(id="m"),)))


@given(loads=st.lists(st.integers(0, 5), min_size=1), seed=st.integers())
def test_the_least_loaded_worker_is_chosen(loads: list[int], seed: int) -> None:
    workers = [worker() for _ in loads]
    with ExitStack() as slots:
        for each, load in zip(workers, loads, strict=True):
            for _ in range(load):
                slots.enter_context(each.slot(lambda: None))
        assert least_loaded(workers, 0.0, Random(seed)).in_flight == min(loads)


def test_equals_share_the_work() -> None:
    workers, rng = [worker() for _ in range(4)], Random(1)
    with ExitStack() as slots:
        for _ in range(40):
            slots.enter_context(least_loaded(workers, 0.0, rng).slot(lambda: None))
        assert [each.in_flight for each in workers] == [10] * 4
    idle = [least_loaded(workers, 0.0, rng) for _ in range(40)]
    assert all(each in idle for each in workers)


def test_a_worker_that_has_just_failed_is_avoided_unless_there_is_no_other() -> None:
    failed, busy = worker(), worker()
    failed.failed(10.0)
    with busy.slot(lambda: None):
        assert least_loaded([failed, busy], 10.0, Random(1)) is busy
        assert least_loaded([failed, busy], 10.0 + AVOID_S, Random(1)) is failed
        assert least_loaded([failed], 10.0, Random(1)) is failed
