"""Which worker gets a request."""

from contextlib import ExitStack
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.fleet import ModelInfo, WorkerInfo
from chatfleet.dispatch.policy import least_loaded
from chatfleet.dispatch.view import Worker


def worker() -> Worker:
    return Worker(WorkerInfo(worker_id="w", url="http://w:1", models=(ModelInfo(id="m"),)))


@given(loads=st.lists(st.integers(0, 5), min_size=1), seed=st.integers())
def test_the_least_loaded_worker_is_chosen(loads: list[int], seed: int) -> None:
    workers = [worker() for _ in loads]
    with ExitStack() as slots:
        for each, load in zip(workers, loads, strict=True):
            for _ in range(load):
                slots.enter_context(each.slot(lambda: None))
        assert least_loaded(workers, Random(seed)).in_flight == min(loads)


def test_equals_share_the_work() -> None:
    workers, rng = [worker() for _ in range(4)], Random(1)
    with ExitStack() as slots:
        for _ in range(40):
            slots.enter_context(least_loaded(workers, rng).slot(lambda: None))
        assert [each.in_flight for each in workers] == [10] * 4
    idle = [least_loaded(workers, rng) for _ in range(40)]
    assert all(each in idle for each in workers)
