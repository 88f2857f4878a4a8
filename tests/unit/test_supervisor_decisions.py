"""What a supervisor decides: what to start, when to start it again, what to stop and in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.supervisor.channel import Announcement
from chatfleet.supervisor.decisions import (
    HEALTHY_AFTER_S,
    KILLED,
    MISCONFIGURED,
    Expected,
    Kill,
    Misconfigured,
    Restart,
    Start,
    Supervision,
    Terminate,
)
from chatfleet.supervisor.parts import STOP_ORDER, Part, Role

GRACE_S = {Role.GATEWAY: 15.0, Role.WORKER: 10.0, Role.CONTROLLER: 5.0}
SERVING = Announcement("http://127.0.0.1:1", ("m",))


def part(name: str, role: Role) -> Part:
    return Part(name=name, role=role, command=("true",), grace_s=GRACE_S[role])


CONTROLLER = part("controller", Role.CONTROLLER)
WORKER = part("worker", Role.WORKER)
OTHER = part("worker#2", Role.WORKER)
GATEWAY = part("gateway", Role.GATEWAY)
ALL = [CONTROLLER, WORKER, OTHER, GATEWAY]


@pytest.fixture
def running() -> Supervision:
    """All parts run and have announced themselves, at time 0."""
    supervision = Supervision(ALL, 0.0)
    supervision.due(0.0)
    for each in ALL:
        supervision.announced(each.name, SERVING, 0.0)
    return supervision


def test_all_parts_start_at_once() -> None:
    supervision = Supervision(ALL, 5.0)
    assert supervision.due(5.0) == [Start(each) for each in ALL]
    assert supervision.due(5.0) == []
    assert supervision.next_due() is None


def test_a_part_that_ends_starts_again_after_a_pause_and_the_others_run_on(running: Supervision) -> None:
    assert running.ended("worker", -9, 10.0) == Restart(0.5)
    assert running.next_due() == 10.5
    assert running.due(10.4) == []
    assert running.due(10.5) == [Start(WORKER)]


@pytest.mark.parametrize("returncode", [0, 1, 2, -9, -15, None])
def test_any_end_that_was_not_asked_for_is_a_crash_once_it_has_served(
    running: Supervision, returncode: int | None
) -> None:
    assert isinstance(running.ended("gateway", returncode, 1.0), Restart)
    assert not running.stopping


def test_the_pause_doubles_up_to_a_bound_while_it_keeps_ending() -> None:
    supervision = Supervision([WORKER], 0.0)
    delays = []
    now = 0.0
    for _ in range(9):
        assert supervision.due(now) == [Start(WORKER)]
        ending = supervision.ended("worker", 1, now)
        assert isinstance(ending, Restart)
        delays.append(ending.delay_s)
        now += ending.delay_s
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("healthy_s", "delay_s"), [(HEALTHY_AFTER_S, 0.5), (HEALTHY_AFTER_S - 1, 1.0)])
def test_a_minute_of_health_is_a_new_beginning(running: Supervision, healthy_s: float, delay_s: float) -> None:
    running.ended("worker", 1, 0.0)
    running.due(1.0)
    running.announced("worker", SERVING, 2.0)
    running.announced("worker", SERVING, 2.0 + healthy_s - 1)
    assert running.ended("worker", 1, 2.0 + healthy_s) == Restart(delay_s)


def test_the_time_before_it_serves_is_no_health() -> None:
    supervision = Supervision([WORKER], 0.0)
    supervision.due(0.0)
    supervision.ended("worker", 1, 0.0)
    supervision.due(1.0)
    assert supervision.ended("worker", 1, 1000.0) == Restart(1.0)


def test_it_is_said_once_that_a_part_is_back(running: Supervision) -> None:
    running.ended("worker", 1, 1.0)
    running.due(2.0)
    assert running.announced("worker", SERVING, 3.0)
    assert not running.announced("worker", SERVING, 4.0)
    fresh = Supervision([WORKER], 0.0)
    fresh.due(0.0)
    assert not fresh.announced("worker", SERVING, 1.0)


def test_a_part_that_is_misconfigured_stops_everything_with_its_status(running: Supervision) -> None:
    supervision = Supervision(ALL, 0.0)
    supervision.due(0.0)
    supervision.announced("controller", SERVING, 0.0)
    assert supervision.ended("worker", MISCONFIGURED, 1.0) == Misconfigured()
    assert supervision.stopping and supervision.status == MISCONFIGURED
    assert supervision.due(1.0) == [Terminate(GATEWAY)]


def test_parts_stop_gateway_first_then_workers_then_controller(running: Supervision) -> None:
    running.stop()
    assert running.due(0.0) == [Terminate(GATEWAY)]
    assert running.due(1.0) == []
    assert running.ended("gateway", 0, 2.0) == Expected()
    assert running.due(2.0) == [Terminate(WORKER), Terminate(OTHER)]
    assert running.ended("worker", 0, 3.0) == Expected()
    assert running.due(3.0) == []
    assert running.ended("worker#2", 0, 4.0) == Expected()
    assert running.due(4.0) == [Terminate(CONTROLLER)]
    assert not running.done
    running.ended("controller", 0, 5.0)
    assert running.done and running.status == 0


def test_a_part_that_does_not_stop_in_its_time_is_killed(running: Supervision) -> None:
    running.stop()
    running.due(10.0)
    assert running.next_due() == 10.0 + GATEWAY.grace_s
    assert running.due(24.9) == []
    assert running.due(25.0) == [Kill(GATEWAY)]
    assert running.due(25.1) == []
    running.ended("gateway", -9, 25.2)
    assert running.due(25.2) == [Terminate(WORKER), Terminate(OTHER)]
    assert running.due(35.2) == [Kill(WORKER), Kill(OTHER)]


def test_what_waits_for_its_restart_is_not_started_once_all_stops(running: Supervision) -> None:
    running.ended("gateway", 1, 0.0)
    running.stop()
    assert running.due(100.0) == [Terminate(WORKER), Terminate(OTHER)]
    for name in ("worker", "worker#2"):
        running.ended(name, 0, 101.0)
    running.due(101.0)
    running.ended("controller", 0, 102.0)
    assert running.done


def test_killing_ends_the_stop_in_order(running: Supervision) -> None:
    running.stop()
    running.due(0.0)
    running.kill()
    assert running.due(100.0) == [] and running.next_due() is None
    assert running.status == KILLED


def test_what_is_known_of_a_part_ends_with_it(running: Supervision) -> None:
    assert running.announcements(Role.WORKER) == [SERVING, SERVING]
    running.ended("worker", 1, 1.0)
    assert running.announcements(Role.WORKER) is None


class Walk:
    """A supervision and the processes that it believes to run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.supervision = Supervision(ALL, self.now)
        self.alive: set[str] = set()

    def act(self) -> None:
        for action in self.supervision.due(self.now):
            match action:
                case Start(started):
                    assert started.name not in self.alive and not self.supervision.stopping
                    self.alive.add(started.name)
                case Terminate(ending):
                    rank = STOP_ORDER.index(ending.role)
                    earlier = {each.name for each in ALL if STOP_ORDER.index(each.role) < rank}
                    assert ending.name in self.alive and not earlier & self.alive
                case Kill(ending):
                    assert ending.name in self.alive


@given(st.lists(st.tuples(st.sampled_from(["pass", "end", "serve", "stop"]), st.integers(0, 3)), max_size=60))
def test_whatever_happens_it_comes_to_an_end_when_it_should(steps: list[tuple[str, int]]) -> None:
    walk = Walk()
    for step, which in steps:
        walk.act()
        name = ALL[which].name
        if step == "pass":
            walk.now += 10.0**which
        elif step == "stop":
            walk.supervision.stop()
        elif name in walk.alive:
            if step == "serve":
                walk.supervision.announced(name, SERVING, walk.now)
            else:
                walk.alive.discard(name)
                walk.supervision.ended(name, which, walk.now)
    walk.supervision.stop()
    for _ in range(20):
        walk.act()
        due = walk.supervision.next_due()
        if due is not None:
            walk.now = max(walk.now, due)
        for name in [name for name in walk.alive if walk.supervision.states[name].stopping]:
            walk.alive.discard(name)
            walk.supervision.ended(name, -9, walk.now)
    assert walk.supervision.done and not walk.alive
