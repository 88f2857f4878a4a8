"""When a worker that fails gets requests, and when not."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatfleet.dispatch.breaker import (
    AVOID_S,
    FAILURES,
    FIRST_DELAY_S,
    MAX_DELAY_S,
    REFUSALS,
    Breaker,
    CircuitState,
)

CLOSED, HALF_OPEN, OPEN = CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN


@dataclass
class Watched:
    """A breaker, and every change of its state as before and after."""

    changes: list[tuple[CircuitState, CircuitState]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breaker = Breaker(lambda before: self.changes.append((before, self.breaker.state)))


def lets_through(breaker: Breaker, now: float) -> bool:
    return breaker.avoid_until <= now


def opened(now: float = 0.0) -> Breaker:
    breaker = Watched().breaker
    for _ in range(FAILURES):
        breaker.failed(now)
    return breaker


def half_opened() -> Breaker:
    breaker = opened()
    breaker.probed(alive=True, now=FIRST_DELAY_S)
    return breaker


def test_failures_in_a_row_open_it_and_not_one_less() -> None:
    breaker = Watched().breaker
    for _ in range(FAILURES - 1):
        breaker.failed(0.0)
    assert breaker.state is CLOSED and lets_through(breaker, AVOID_S)
    breaker.failed(0.0)
    assert breaker.state is OPEN and not lets_through(breaker, 1e12)


def test_a_success_begins_the_count_anew() -> None:
    breaker = Watched().breaker
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state is CLOSED and breaker.failures == 0


def test_a_single_failure_makes_others_be_preferred_for_a_while_whatever_else_succeeds() -> None:
    breaker = Watched().breaker
    breaker.failed(10.0)
    assert not lets_through(breaker, 10.0 + AVOID_S - 0.01) and lets_through(breaker, 10.0 + AVOID_S)
    breaker.succeeded()
    assert not lets_through(breaker, 10.0 + AVOID_S - 0.01) and lets_through(breaker, 10.0 + AVOID_S)


def test_refused_connections_open_it_sooner() -> None:
    breaker = Watched().breaker
    for _ in range(REFUSALS - 1):
        breaker.failed(0.0, unreachable=True)
    assert breaker.state is CLOSED
    breaker.failed(0.0, unreachable=True)
    assert breaker.state is OPEN


def test_one_that_broke_off_and_then_refuses_is_down() -> None:
    breaker = Watched().breaker
    breaker.failed(0.0)
    breaker.failed(0.0, unreachable=True)
    assert breaker.state is OPEN


def test_a_probe_that_finds_life_lets_one_request_at_a_time_through() -> None:
    breaker = opened()
    breaker.probed(alive=True, now=FIRST_DELAY_S)
    assert breaker.state is HALF_OPEN and breaker.probe_at == math.inf
    assert lets_through(breaker, FIRST_DELAY_S)
    breaker.began("trial")
    assert not lets_through(breaker, 1e12)
    breaker.began("one that was sent all the same")
    breaker.ended("one that was sent all the same")
    assert not lets_through(breaker, 1e12), "the trial still goes on"
    breaker.ended("trial")
    assert breaker.state is HALF_OPEN and lets_through(breaker, FIRST_DELAY_S), "it had no outcome"


def test_the_success_of_the_trial_closes_it_and_all_is_as_at_first() -> None:
    breaker = half_opened()
    breaker.began("trial")
    breaker.succeeded()
    breaker.ended("trial")
    assert (breaker.state, breaker.failures, breaker.probe_at) == (CLOSED, 0, math.inf)
    assert lets_through(breaker, FIRST_DELAY_S)
    for _ in range(FAILURES):
        breaker.failed(100.0)
    assert breaker.probe_at == 100.0 + FIRST_DELAY_S


def test_the_failure_of_the_trial_opens_it_for_longer() -> None:
    breaker = half_opened()
    breaker.began("trial")
    breaker.failed(5.0)
    breaker.ended("trial")
    assert breaker.state is OPEN and not lets_through(breaker, 1e12)
    assert breaker.probe_at == 5.0 + 2 * FIRST_DELAY_S


def test_an_earlier_trial_does_not_free_the_place_of_a_later_one() -> None:
    breaker = half_opened()
    breaker.began("first")
    breaker.failed(2.0)
    breaker.probed(alive=True, now=breaker.probe_at)
    breaker.began("second")
    breaker.ended("first")
    assert not lets_through(breaker, 1e12)


def test_the_delay_before_a_probe_doubles_to_its_bound_while_none_finds_life() -> None:
    breaker, delays, now = opened(), [], 0.0
    for _ in range(8):
        delays.append(breaker.probe_at - now)
        now = breaker.probe_at
        breaker.probed(alive=False, now=now)
        assert breaker.state is OPEN
    assert delays == [1, 2, 4, 8, 16, MAX_DELAY_S, MAX_DELAY_S, MAX_DELAY_S]


def test_failures_of_requests_that_were_under_way_do_not_put_off_the_probe() -> None:
    breaker = opened()
    for _ in range(100):
        breaker.failed(FIRST_DELAY_S / 2)
    assert breaker.probe_at == FIRST_DELAY_S and breaker.failures == FAILURES + 100


def test_a_success_closes_an_open_one_too() -> None:
    breaker = opened()
    breaker.succeeded()
    assert breaker.state is CLOSED and lets_through(breaker, 0.0) and breaker.probe_at == math.inf


@pytest.mark.parametrize("alive", [True, False])
def test_a_probe_that_was_not_due_decides_nothing(alive: bool) -> None:
    """It was for another purpose, or its worker has answered a request meanwhile."""
    for breaker in (Watched().breaker, opened(), half_opened()):
        before = breaker.state, breaker.avoid_until, breaker.probe_at
        breaker.probed(alive=alive, now=FIRST_DELAY_S / 2)
        assert before == (breaker.state, breaker.avoid_until, breaker.probe_at)


def test_changes_are_told_once_each() -> None:
    watched = Watched()
    breaker = watched.breaker
    for _ in range(FAILURES + 3):
        breaker.failed(0.0)
    breaker.probed(alive=False, now=1.0)
    breaker.probed(alive=True, now=3.0)
    breaker.failed(3.0)
    breaker.probed(alive=True, now=10.0)
    breaker.succeeded()
    breaker.succeeded()
    assert watched.changes == [
        (CLOSED, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED),
    ]


class Life(RuleBasedStateMachine):
    """Any order of events. A worker always gets requests again: by itself, by a probe, or when its trial ends."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched()
        self.breaker = self.watched.breaker
        self.now = 0.0
        self.under_way: list[object] = []

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def request(self) -> None:
        self.under_way.append(request := object())
        if self.breaker.state:
            self.breaker.began(request)

    @rule(outcome=st.sampled_from(["success", "failure", "refusal", None]), which=st.integers(0, 5))
    def outcome(self, outcome: str | None, which: int) -> None:
        if which < len(self.under_way):
            request = self.under_way.pop(which)
            if outcome == "success":
                self.breaker.succeeded()
                assert self.breaker.state is CLOSED
            elif outcome is not None:
                self.breaker.failed(self.now, unreachable=outcome == "refusal")
            if self.breaker.state:
                self.breaker.ended(request)

    @rule(alive=st.booleans())
    def probe(self, alive: bool) -> None:
        self.breaker.probed(alive=alive, now=self.now)

    @invariant()
    def it_comes_back(self) -> None:
        breaker = self.breaker
        assert (breaker.probe_at < math.inf) == (breaker.state is OPEN)
        assert breaker.probe_at - self.now <= MAX_DELAY_S or breaker.state is not OPEN
        if breaker.state is CLOSED:
            assert breaker.avoid_until <= self.now + AVOID_S
        elif breaker.state is OPEN:
            assert breaker.avoid_until == math.inf
        else:
            assert lets_through(breaker, self.now) or self.under_way
        assert all(before is not after for before, after in self.watched.changes)


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
