"""Who may generate."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.errors import InvalidRequest, QueueFull
from chatfleet.worker.admission import Admission, Permit


async def test_slots_go_out_in_order_of_arrival() -> None:
    admission = Admission(max_concurrency=1, max_queue=2)
    first, second, third = admission.reserve(1) + admission.reserve(1) + admission.reserve(1)
    served: list[str] = []

    async def use(name: str, permit: Permit) -> None:
        async with permit:
            served.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(use("third", third), use("second", second), use("first", first))
    assert served == ["first", "second", "third"]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_past_the_queue_it_is_full_and_nothing_is_reserved() -> None:
    admission = Admission(max_concurrency=2, max_queue=1)
    admission.reserve(2)
    with pytest.raises(QueueFull, match="2 running and 0 waiting"):
        admission.reserve(2)
    assert (admission.running, admission.waiting) == (2, 0)
    admission.reserve(1)
    with pytest.raises(QueueFull):
        admission.reserve(1)


async def test_what_can_never_be_taken_is_no_matter_of_trying_again() -> None:
    with pytest.raises(InvalidRequest, match="4 choices"):
        Admission(max_concurrency=2, max_queue=1).reserve(4)


async def test_leaving_the_queue_frees_the_place_at_once() -> None:
    admission = Admission(max_concurrency=1, max_queue=1)
    (running,) = admission.reserve(1)
    (waiting,) = admission.reserve(1)
    waiting.release()
    waiting.release()
    (next_one,) = admission.reserve(1)
    running.release()
    async with next_one:
        assert admission.running == 1


async def test_a_cancelled_waiter_does_not_lose_the_slot_for_the_next() -> None:
    admission = Admission(max_concurrency=1, max_queue=2)
    (running,) = admission.reserve(1)
    (cancelled,) = admission.reserve(1)
    (patient,) = admission.reserve(1)

    async def enter() -> None:
        async with cancelled:
            raise AssertionError("never reached")

    task = asyncio.create_task(enter())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    cancelled.release()
    running.release()
    async with asyncio.timeout(1), patient:
        assert admission.running == 1


async def test_the_lowest_priority_number_comes_first_then_who_came_first() -> None:
    admission = Admission(max_concurrency=1, max_queue=10)
    (running,) = admission.reserve(1)
    names = ["late", "early", "first", "later", "earlier"]
    waiting = [admission.reserve(1, priority=priority)[0] for priority in (5, 0, -1, 5, 0)]
    served: list[str] = []

    async def use(name: str, permit: Permit) -> None:
        async with permit:
            served.append(name)

    uses = asyncio.gather(*map(use, names, waiting))
    running.release()
    await uses
    assert served == ["first", "early", "earlier", "late", "later"]


async def test_what_runs_is_not_interrupted_for_anybody() -> None:
    admission = Admission(max_concurrency=1, max_queue=1)
    (running,) = admission.reserve(1, priority=9)
    admission.reserve(1, priority=-9)
    async with asyncio.timeout(1), running:
        assert (admission.running, admission.waiting) == (1, 1)


async def test_those_who_have_left_take_no_room() -> None:
    admission = Admission(max_concurrency=1, max_queue=2)
    admission.reserve(1)
    (patient,) = admission.reserve(1)
    for number in range(10_000):
        admission.reserve(1, priority=number)[0].release()
    assert admission.waiting == 1 and len(admission._queue) < 200
    patient.release()
    assert admission.waiting == 0


async def test_the_refused_are_told_when_there_is_room_each_later_than_the_one_before() -> None:
    clock = [0.0]
    admission = Admission(max_concurrency=2, max_queue=0, now=lambda: clock[0])
    for _ in range(50):
        permits = admission.reserve(2)
        clock[0] += 4.0
        for permit in permits:
            permit.release()
    admission.reserve(2)
    told = []
    for _ in range(3):
        with pytest.raises(QueueFull) as refused:
            admission.reserve(1)
        headers = refused.value.headers
        assert headers["x-should-retry"] == "true"
        assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
        told.append(int(headers["retry-after-ms"]))
    assert told == pytest.approx([2000, 4000, 6000], rel=0.15)


@given(
    limits=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    actions=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=60),
    priorities=st.lists(st.integers(-1, 1), min_size=60, max_size=60),
)
def test_bounds_hold_whatever_comes_and_goes(
    limits: tuple[int, int], actions: list[tuple[bool, int]], priorities: list[int]
) -> None:
    async def run() -> None:
        admission = Admission(max_concurrency=limits[0], max_queue=limits[1])
        permits = []
        for (arrives, number), priority in zip(actions, priorities, strict=False):
            if arrives:
                try:
                    permits += admission.reserve(number % 3 + 1, priority=priority)
                except QueueFull:
                    assert admission.running == limits[0] or admission.waiting + number % 3 + 1 > limits[1]
                except InvalidRequest:
                    assert number % 3 + 1 > sum(limits)
            elif permits:
                permits.pop(number % len(permits)).release()
            assert admission.running <= limits[0]
            assert admission.waiting <= limits[1]
            assert admission.running + admission.waiting == len(permits)
            assert admission.waiting == 0 or admission.running == limits[0]
        for permit in permits:
            permit.release()
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(run())
