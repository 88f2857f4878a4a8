"""What a gateway does when workers fail: decisions, without a socket."""

import pytest

from chatfleet.core.errors import (
    FirstEventTimeout,
    NoWorker,
    ServingError,
    StreamStalled,
    TooManyRequests,
    WorkerBrokeOff,
    WorkerCrashed,
    WorkerFailed,
    WorkerRefused,
    WorkerUnreachable,
)
from chatfleet.core.fleet import ModelInfo, WorkerInfo, WorkerKind
from chatfleet.dispatch.attempts import (
    MAX_DEATHS,
    MAX_QUARANTINED,
    MIN_RETRYING,
    QUARANTINE_S,
    Attempts,
    Crowd,
    Patience,
    Quarantine,
    RetryBudget,
)
from chatfleet.dispatch.view import Worker


def patience(*, retry_s: float = 10.0, max_replays: int = 1) -> Patience:
    return Patience(first_event_s=60, stall_s=60, total_s=600, retry_s=retry_s, max_replays=max_replays)


def worker(name: str, kind: WorkerKind = "chatfleet") -> Worker:
    info = WorkerInfo(worker_id=name, url=f"http://{name}:1", kind=kind, models=(ModelInfo(id="m"),))
    return Worker(info)


def refused(status: int, *, code: str | None = None, retry_after_ms: int | None = None) -> WorkerRefused:
    headers = {} if retry_after_ms is None else {"retry-after-ms": str(retry_after_ms)}
    return WorkerRefused("no", status=status, type="server_error", param=None, code=code, headers=headers)


A, B, C = worker("a"), worker("b"), worker("c")
BROKE_OFF = WorkerBrokeOff("broke off")
UNREACHABLE = WorkerUnreachable("unreachable")


def fail(
    attempts: Attempts,
    error: ServingError,
    on: Worker = A,
    *,
    at: float = 0.0,
    begun: bool = False,
    went: bool = False,
) -> ServingError | None:
    return attempts.failed(error, on, at, has_begun=begun, went_on=went)


@pytest.mark.parametrize("error", [UNREACHABLE, refused(429), refused(502), refused(503)])
def test_a_worker_that_has_not_begun_costs_nothing_but_time(error: ServingError) -> None:
    attempts = Attempts(patience(max_replays=0))
    for number in range(100):
        assert fail(attempts, error, worker(str(number))) is None


@pytest.mark.parametrize("error", [refused(400), refused(404), refused(500), refused(501), NoWorker("none")])
def test_what_is_an_answer_is_passed_on(error: ServingError) -> None:
    assert fail(Attempts(patience()), error) is error


def test_those_that_failed_it_are_not_asked_while_there_are_others() -> None:
    attempts = Attempts(patience())
    fail(attempts, UNREACHABLE, A)
    assert attempts.candidates([A, B, C]) == [B, C]
    fail(attempts, UNREACHABLE, C)
    assert attempts.candidates([A, B, C]) == [B]
    fail(attempts, UNREACHABLE, B)
    assert attempts.candidates([A, B, C]) == []
    assert attempts.without_candidates(1.0, has_begun=False, are_there=False) is None
    assert attempts.candidates([A, B, C]) == [A, B, C]


def test_a_death_is_replayed_once_and_the_second_is_the_end() -> None:
    attempts = Attempts(patience())
    assert fail(attempts, BROKE_OFF, A) is None and not attempts.is_poison
    error = fail(attempts, BROKE_OFF, B)
    assert isinstance(error, WorkerCrashed) and attempts.is_poison
    assert (error.status, error.code, error.headers["x-should-retry"]) == (500, "worker_crashed", "false")


def test_no_replays_where_none_are_wanted() -> None:
    assert isinstance(fail(Attempts(patience(max_replays=0)), BROKE_OFF), WorkerCrashed)


def test_a_stream_that_went_on_may_lose_another_worker_but_not_two_at_one_place() -> None:
    attempts = Attempts(patience(max_replays=0))
    for _ in range(3):
        assert fail(attempts, BROKE_OFF, begun=True, went=True) is None
    assert isinstance(fail(attempts, BROKE_OFF, begun=True), WorkerCrashed)


def test_what_kills_workers_one_token_later_each_time_ends_too() -> None:
    attempts = Attempts(patience())
    outcomes = [fail(attempts, BROKE_OFF, begun=True, went=True) for _ in range(MAX_DEATHS + 1)]
    assert outcomes[:-1] == [None] * MAX_DEATHS and isinstance(outcomes[-1], WorkerCrashed)


def test_an_engine_of_ours_that_died_counts_as_its_worker() -> None:
    attempts = Attempts(patience())
    assert fail(attempts, refused(500, code="engine_crashed")) is None
    assert isinstance(fail(attempts, refused(500, code="engine_crashed")), WorkerCrashed) and attempts.is_poison


def test_a_fault_in_a_living_engine_is_replayed_and_then_told_as_it_is() -> None:
    attempts, error = Attempts(patience()), refused(500, code="engine_error")
    assert fail(attempts, error) is None
    assert fail(attempts, error) is error and not attempts.is_poison


@pytest.mark.parametrize("code", ["engine_error", "engine_crashed"])
def test_what_servers_that_are_not_ours_say_of_engines_means_nothing(code: str) -> None:
    foreign = refused(500, code=code)
    assert fail(Attempts(patience()), foreign, worker("f", "openai")) is foreign


@pytest.mark.parametrize("error", [FirstEventTimeout("slow"), StreamStalled("silent"), WorkerFailed("no HTTP")])
def test_what_is_no_death_is_replayed_as_often_and_is_its_own_error(error: ServingError) -> None:
    attempts = Attempts(patience())
    assert fail(attempts, error) is None
    assert fail(attempts, error) is error and not attempts.is_poison


def test_when_all_are_busy_the_one_with_room_first_says_so() -> None:
    attempts = Attempts(patience())
    soon = refused(429, retry_after_ms=500)
    for error, on in ((refused(429, retry_after_ms=9000), A), (soon, B), (refused(429), C)):
        fail(attempts, error, on)
    assert attempts.without_candidates(0.0, has_begun=False, are_there=False) is soon


def test_a_stream_that_has_begun_waits_for_those_that_are_busy() -> None:
    attempts = Attempts(patience())
    fail(attempts, refused(429, retry_after_ms=500), begun=True)
    assert attempts.without_candidates(0.0, has_begun=True, are_there=False) is None
    assert attempts.without_candidates(9.9, has_begun=True, are_there=False) is None
    assert attempts.without_candidates(10.0, has_begun=True, are_there=False) is not None


def test_the_last_worker_of_ours_is_waited_for_though_nobody_is_known_any_more() -> None:
    attempts = Attempts(patience())
    fail(attempts, refused(503), A)
    for now in (0.0, 1.0, 9.9):
        assert attempts.without_candidates(now, has_begun=False, are_there=False) is None
    assert attempts.without_candidates(10.0, has_begun=False, are_there=False) is not None


def test_a_stream_is_not_given_up_for_one_worker_that_does_not_understand() -> None:
    assert fail(Attempts(patience()), refused(400), begun=True) is None


@pytest.mark.parametrize("kind", ["chatfleet", "openai"])
def test_a_refusal_of_a_server_that_is_not_ours_is_not_waited_out(kind: WorkerKind) -> None:
    attempts, error = Attempts(patience()), refused(503)
    fail(attempts, error, worker("w", kind))
    found = attempts.without_candidates(0.0, has_begun=False, are_there=False)
    assert found is (error if kind == "openai" else None)


def test_the_time_runs_while_there_is_nobody_to_ask() -> None:
    attempts = Attempts(patience())
    fail(attempts, refused(503), at=100.0)
    assert attempts.without_candidates(150.0, has_begun=False, are_there=True) is None  # the budget is in the way
    assert attempts.without_candidates(160.0, has_begun=False, are_there=False) is None
    assert attempts.without_candidates(169.9, has_begun=False, are_there=False) is None
    assert attempts.without_candidates(170.0, has_begun=False, are_there=False) is not None


def test_hosts_that_do_not_answer_cost_no_more_than_the_time_there_is() -> None:
    attempts = Attempts(patience())
    assert fail(attempts, UNREACHABLE, at=100.0) is None
    assert fail(attempts, UNREACHABLE, at=109.9) is None
    assert fail(attempts, UNREACHABLE, at=110.0) is UNREACHABLE


def test_without_time_each_is_asked_once() -> None:
    attempts = Attempts(patience(retry_s=0.0))
    for one in (A, B, C):
        assert fail(attempts, UNREACHABLE, one, at=5.0) is None
    assert attempts.without_candidates(5.0, has_begun=False, are_there=False) is UNREACHABLE


@pytest.mark.parametrize("went", [False, True])
def test_the_time_runs_anew_when_a_worker_has_had_it(went: bool) -> None:
    attempts = Attempts(patience())
    fail(attempts, UNREACHABLE, at=100.0)
    assert attempts.without_candidates(100.0, has_begun=False, are_there=False) is None
    fail(attempts, BROKE_OFF, at=109.0, begun=went, went=went)
    assert attempts.without_candidates(111.0, has_begun=went, are_there=False) is None
    assert attempts.without_candidates(120.9, has_begun=went, are_there=False) is None
    assert attempts.without_candidates(121.0, has_begun=went, are_there=False) is BROKE_OFF


def test_who_waits_for_a_worker_looks_again_soon_and_then_less_often() -> None:
    attempts = Attempts.waiting(NoWorker("none"), patience())
    waits = [attempts.wait_s() for _ in range(20)]
    assert 0.02 < waits[0] <= 0.05 and 0.25 <= waits[-1] <= 0.5 and sum(waits) > 3


def test_a_fifth_of_the_requests_is_tried_anew_at_a_time() -> None:
    budget = RetryBudget()
    requests = [object() for _ in range(100)]
    assert sum(budget.take(request, 100) for request in requests) == 20
    assert budget.take(requests[0], 100)  # it has its place already
    assert not budget.take(requests[50], 100)
    budget.give_back(requests[0])
    budget.give_back(requests[0])
    assert budget.take(requests[50], 100) and not budget.take(requests[51], 100)


def test_a_few_may_always_be_tried_anew() -> None:
    budget = RetryBudget()
    assert sum(budget.take(object(), 10) for _ in range(10)) == MIN_RETRYING


def test_more_than_a_gateway_takes_are_told_when_there_is_room() -> None:
    crowd = Crowd(10)
    for _ in range(10):
        crowd.enter(100.0)
    waits = []
    for _ in range(3):
        with pytest.raises(TooManyRequests) as refused:
            crowd.enter(100.0)
        waits.append(int(refused.value.headers["retry-after-ms"]))
    assert waits == [1000, 2000, 3000]  # one a second, while nothing is known
    for _ in range(10):
        crowd.leave(101.0)
    for _ in range(10):
        crowd.enter(101.0)
    with pytest.raises(TooManyRequests) as refused:
        crowd.enter(101.0)  # eleven in two seconds
    assert 150 <= int(refused.value.headers["retry-after-ms"]) <= 200
    assert refused.value.headers["x-should-retry"] == "true" and crowd.size == 10
    for _ in range(1000):
        with pytest.raises(TooManyRequests) as refused:
            crowd.enter(101.0)
    assert int(refused.value.headers["retry-after-ms"]) == 60_000


def test_how_fast_requests_end_is_known_before_the_first_is_turned_away() -> None:
    crowd = Crowd(10)
    for number in range(1000):  # ten a second
        crowd.enter(100 + number / 10)
        crowd.leave(100.05 + number / 10)
    for _ in range(10):
        crowd.enter(200.0)
    with pytest.raises(TooManyRequests) as refused:
        crowd.enter(200.0)
    assert int(refused.value.headers["retry-after-ms"]) == 100


def test_a_body_that_workers_died_of_is_refused_for_ten_minutes() -> None:
    quarantine = Quarantine()
    assert not quarantine.until
    quarantine.add("/a", b"poison", 0.0)
    assert quarantine.until
    quarantine.check("/a", b"other", 1.0)
    quarantine.check("/b", b"poison", 1.0)
    with pytest.raises(WorkerCrashed):
        quarantine.check("/a", b"poison", QUARANTINE_S - 1)
    quarantine.check("/a", b"poison", QUARANTINE_S)
    assert not quarantine.until


def test_the_quarantine_is_bounded() -> None:
    quarantine = Quarantine()
    for number in range(MAX_QUARANTINED + 1):
        quarantine.add("/a", b"%d" % number, 0.0)
    quarantine.check("/a", b"0", 1.0)
    with pytest.raises(WorkerCrashed):
        quarantine.check("/a", b"1", 1.0)
