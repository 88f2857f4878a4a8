"""When those may come again that a full queue has turned away."""

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import pytest

from chatfleet.worker.promises import MAX_S, MIN_S, Promises

TRIES = 3
"""What OpenAI's clients do by default: two retries."""


def use(promises: Promises, slots: int, work_s: float, now: float, rounds: int = 20) -> float:
    """Let each of the slots, which are in use, be given back after `work_s` and taken again, so many times; the time
    after that."""
    for _ in range(slots * rounds):
        now += work_s / slots
        promises.given_back(now)
        promises.taken(now)
    return now


def busy(slots: int, max_queue: int, work_s: float) -> tuple[Promises, float]:
    """Promises that have seen all slots in use, as they are still, and the time by then."""
    promises = Promises(slots=slots, max_queue=max_queue, now=0.0)
    for _ in range(slots):
        promises.taken(0.0)
    return promises, use(promises, slots, work_s, 0.0)


def test_each_refused_choice_is_promised_the_next_place() -> None:
    promises, now = busy(4, 0, 2.0)
    waits = [promises.retry_after_s(1, now) for _ in range(6)]
    assert waits == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0], rel=0.05)


def test_several_choices_take_as_many_places() -> None:
    promises, now = busy(4, 0, 2.0)
    assert promises.retry_after_s(3, now) == pytest.approx(1.5, rel=0.05)
    assert promises.retry_after_s(1, now) == pytest.approx(2.0, rel=0.05)


def test_a_place_that_was_given_back_is_owed_no_more() -> None:
    promises, now = busy(4, 0, 2.0)
    promises.retry_after_s(4, now)
    promises.given_back(now + 0.1)
    assert promises.retry_after_s(1, now + 0.1) == pytest.approx(2.0, rel=0.1)


def test_promises_that_are_past_are_forgotten() -> None:
    promises, now = busy(4, 0, 2.0)
    promises.retry_after_s(8, now)
    for _ in range(4):
        promises.given_back(now)
    assert promises.retry_after_s(1, now + 60) < 1.0


def test_half_a_queue_is_left_to_wait_in_when_they_come() -> None:
    promises, now = busy(4, 4, 2.0)
    assert promises.retry_after_s(1, now) == pytest.approx(1.5, rel=0.05)
    promises, now = busy(4, 1000, 2.0)
    assert promises.retry_after_s(1, now) == pytest.approx(2.5, rel=0.05), "a round of the slots at most"


def test_the_pace_follows_what_is_seen() -> None:
    promises, now = busy(8, 0, 0.5)
    now = use(promises, 8, 4.0, now)
    assert promises.retry_after_s(8, now) == pytest.approx(4.0, rel=0.1)


def test_what_has_run_for_long_without_an_end_is_no_hurry() -> None:
    promises = Promises(slots=2, max_queue=0, now=0.0)
    promises.taken(0.0)
    promises.taken(0.0)
    waits = []
    for now in (0.0, 10.0, 30.0):
        waits.append(promises.retry_after_s(1, now))
    assert waits == sorted(waits) and waits[-1] > 10


def test_no_one_comes_at_once_or_after_a_minute() -> None:
    promises, now = busy(64, 0, 0.01)
    assert promises.retry_after_s(1, now) == MIN_S
    assert promises.retry_after_s(10**6, now) == MAX_S


Work = Callable[[random.Random], float]


def overload(slots: int, max_queue: int, clients: int, work: Work, promises: Promises, now: float) -> tuple[int, float]:
    """Clients that all come at `now`, and again when they are told to: how many give up, and how long it takes."""
    rng = random.Random(clients)
    order = count()
    events: list[tuple[float, int, int]] = []  # time, order, tries so far; less than 0 for the end of work
    for _ in range(clients):
        heappush(events, (now, next(order), 0))
    begun_at, running, waiting, lost = now, 0, deque[int](), 0
    while events:
        now, _, tries = heappop(events)
        if tries < 0:
            running -= 1
            promises.given_back(now)
        elif running < slots or len(waiting) < max_queue:
            waiting.append(tries)
        elif tries + 1 == TRIES:
            lost += 1
        else:
            heappush(events, (now + promises.retry_after_s(1, now), next(order), tries + 1))
        while waiting and running < slots:
            waiting.popleft()
            running += 1
            promises.taken(now)
            heappush(events, (now + work(rng), next(order), -1))
    return lost, now - begun_at


WORKS: dict[str, Callable[[float], Work]] = {
    "even": lambda mean_s: lambda rng: mean_s,
    "uneven": lambda mean_s: lambda rng: rng.uniform(0.5 * mean_s, 1.5 * mean_s),
    "any": lambda mean_s: lambda rng: rng.expovariate(1 / mean_s),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", WORKS)
@pytest.mark.parametrize(
    ("slots", "max_queue", "clients", "mean_s"),
    [
        (slots, max_queue, clients, mean_s)
        for slots, max_queue, clients in ((8, 8, 40), (16, 32, 120), (64, 64, 400), (8, 64, 200))
        for mean_s in (0.3, 1.0, 2.0, 5.0, 10.0)
        if mean_s * clients / slots <= MAX_S  # nobody is promised a place in more than a minute
    ],
)
def test_who_comes_when_told_is_served_within_two_retries(
    slots: int, max_queue: int, clients: int, mean_s: float, kind: str, known: bool
) -> None:
    if known:
        promises, now = busy(slots, max_queue, mean_s)
        for _ in range(slots):
            promises.given_back(now)
    else:
        promises, now = Promises(slots=slots, max_queue=max_queue, now=0.0), 0.0
    lost, took_s = overload(slots, max_queue, clients, WORKS[kind](mean_s), promises, now)
    assert lost == 0
    if known:
        assert took_s < 3 * mean_s * clients / slots + 3 * mean_s, "slots stood idle"
