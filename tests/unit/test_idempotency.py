"""What is kept of answers to requests with an Idempotency-Key, for how long, and what gives way."""

from pathlib import Path

import pytest

from chatfleet.core.errors import (
    EngineError,
    IdempotencyKeyReused,
    IdempotentAnswerGone,
    InvalidRequest,
    TooManyRequests,
)
from chatfleet.gateway.data_plane.idempotency import (
    KEPT_S,
    MAX_BACKLOG_BYTES,
    Answer,
    IdempotencyStore,
    digest_of,
    scope_of,
)
from chatfleet.gateway.siblings import PLACE_VARIABLE, Place, own_place, place_environments

MB = 2**20
BODY, OTHER_BODY = digest_of(b"{}"), digest_of(b"{ }")
EVENT = b"data: x\n\n"


class Client:
    """Reads as the data plane's requests do; not while it is `busy`."""

    def __init__(self, answer: Answer, *, busy: bool = False) -> None:
        self.offset = 0
        self.busy = busy
        self.got = b""
        self.outcome: object = None
        self._answer = answer
        answer.join(self)
        self.advance()

    def advance(self) -> None:
        answer = self._answer
        if answer.error is not None or answer.whole is not None:
            self._end(answer.error or answer.whole)
            return
        while not self.busy and (events := answer.read(self.offset)):
            self.got += events
            self.offset += len(events)
        if answer.has_ended and self.offset == answer.size:
            self._end("ended")

    def comment(self, data: bytes) -> None:
        self.got += data

    def read_on(self) -> None:
        self.busy = False
        self.advance()
        self._answer.drop_read()

    def leave(self) -> None:
        self._answer.leave(self)

    def _end(self, outcome: object) -> None:
        assert self.outcome is None
        self.outcome = outcome
        self.leave()


class Worker:
    """Gives an answer."""

    def __init__(self, answer: Answer) -> None:
        answer.writer = self
        self.is_paused = self.is_unread = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def unread(self) -> None:
        self.is_unread = True


def new(store: IdempotencyStore, scope: bytes, now: float = 0.0) -> Answer:
    answer, is_new = store.open(scope, BODY, now)
    assert is_new
    return answer


def again(store: IdempotencyStore, scope: bytes, now: float = 0.0) -> Answer:
    answer, is_new = store.open(scope, BODY, now)
    assert not is_new
    return answer


def finished(store: IdempotencyStore, scope: bytes, size: int, now: float = 0.0) -> Answer:
    answer = new(store, scope, now)
    answer.give_whole(b"x" * size, [], now)
    return answer


def is_gone(store: IdempotencyStore, scope: bytes, now: float = 0.0) -> bool:
    try:
        store.open(scope, BODY, now)
    except IdempotentAnswerGone as exc:
        assert exc.status == 409 and exc.headers["x-should-retry"] == "false"
        return True
    return False


def test_a_repeat_gets_the_same_answer_while_it_comes_and_after() -> None:
    store = IdempotencyStore(MB)
    answer = new(store, b"a")
    first = Client(answer)
    answer.begin(["seed"])
    answer.add(EVENT)
    second = Client(again(store, b"a"))
    answer.add(EVENT * 2)
    answer.end(5.0)
    third = Client(again(store, b"a", 600.0))
    assert {(one.got, one.outcome) for one in (first, second, third)} == {(EVENT * 3, "ended")}
    assert third._answer.ignored == ["seed"]


def test_ten_minutes_count_from_the_end_of_the_first() -> None:
    store = IdempotencyStore(MB)
    answer = new(store, b"a", 0.0)
    answer.add(EVENT)
    answer.end(1000.0)
    assert again(store, b"a", 1000.0 + KEPT_S - 0.1) is answer
    assert new(store, b"a", 1000.0 + KEPT_S) is not answer


def test_what_has_expired_leaves_nothing_behind() -> None:
    store = IdempotencyStore(MB)
    for number in range(10):
        finished(store, b"%d" % number, 1000, float(number))
    store.expire(KEPT_S + 20.0)
    assert len(store) == store.kept_bytes == 0


def test_another_body_under_a_key_is_refused_whatever_became_of_the_first() -> None:
    store = IdempotencyStore(100_000)
    finished(store, b"evicted", 40_000)
    finished(store, b"kept", 40_000)
    new(store, b"running")
    finished(store, b"last", 40_000)
    assert is_gone(store, b"evicted")
    for scope in (b"evicted", b"kept", b"running"):
        with pytest.raises(IdempotencyKeyReused) as refused:
            store.open(scope, OTHER_BODY, 1.0)
        assert refused.value.status == 422 and refused.value.headers["x-should-retry"] == "false"


def test_an_error_is_told_to_all_who_wait_and_forgotten() -> None:
    store = IdempotencyStore(MB)
    answer = new(store, b"a")
    waiting = [Client(answer), Client(again(store, b"a"))]
    error = EngineError("broken")
    answer.fail(error)
    assert [one.outcome for one in waiting] == [error, error]
    assert len(store) == store.kept_bytes == 0
    store.open(b"a", OTHER_BODY, 0.0)  # nothing holds the key to its body either


def test_the_oldest_answers_give_way_and_are_never_made_again() -> None:
    store = IdempotencyStore(100_000)
    finished(store, b"1", 30_000, 1.0)
    finished(store, b"2", 30_000, 2.0)
    finished(store, b"3", 30_000, 3.0)
    finished(store, b"4", 30_000, 4.0)
    assert store.kept_bytes <= 100_000
    assert [is_gone(store, b"%d" % number, 5.0) for number in (1, 2, 3, 4)] == [True, False, False, False]
    assert is_gone(store, b"1", 1.0 + KEPT_S - 0.1)
    assert not is_gone(store, b"1", 1.0 + KEPT_S)


def test_an_answer_that_somebody_still_reads_does_not_give_way() -> None:
    store = IdempotencyStore(100_000)
    slow = new(store, b"slow")
    reader = Client(slow, busy=True)
    slow.add(EVENT * 4000)
    slow.end(1.0)
    finished(store, b"2", 30_000, 2.0)
    finished(store, b"3", 40_000, 3.0)
    assert is_gone(store, b"2", 3.0) and not is_gone(store, b"slow", 3.0)
    reader.read_on()
    assert (len(reader.got), reader.outcome) == (len(EVENT) * 4000, "ended")
    finished(store, b"4", 40_000, 4.0)
    assert is_gone(store, b"slow", 4.0)


def test_an_answer_too_large_to_keep_reaches_those_who_were_there() -> None:
    store = IdempotencyStore(100_000)
    answer = new(store, b"a")
    reader, worker = Client(answer), Worker(answer)
    for _ in range(20):
        answer.add(EVENT * 1000)
    assert is_gone(store, b"a"), "a repeat cannot get its start any more"
    answer.end(1.0)
    assert (reader.got, reader.outcome) == (EVENT * 20_000, "ended")
    assert store.kept_bytes == 0 and not worker.is_paused
    assert is_gone(store, b"a", KEPT_S) and not is_gone(store, b"a", 1.0 + KEPT_S)


def test_a_large_answer_does_not_drive_out_all_others() -> None:
    store = IdempotencyStore(100_000)
    finished(store, b"small", 1000)
    finished(store, b"large", 90_000)
    assert is_gone(store, b"large") and not is_gone(store, b"small")


def test_a_whole_answer_too_large_to_keep_reaches_those_who_were_there_only() -> None:
    store = IdempotencyStore(100_000)
    answer = new(store, b"a")
    readers = [Client(answer), Client(again(store, b"a"))]
    answer.give_whole(b"x" * 200_000, [], 0.0)
    assert [one.outcome for one in readers] == [b"x" * 200_000] * 2
    assert is_gone(store, b"a") and not answer.whole


def test_the_worker_waits_for_a_slow_reader_of_what_is_not_kept() -> None:
    store = IdempotencyStore(10_000)
    answer = new(store, b"a")
    quick, slow, worker = Client(answer), Client(answer, busy=True), Worker(answer)
    piece = EVENT * 1000
    pieces = 0
    while not worker.is_paused:
        answer.add(piece)
        pieces += 1
        assert pieces * len(piece) <= MAX_BACKLOG_BYTES + len(piece)
    assert quick.offset == answer.size
    slow.read_on()
    assert not worker.is_paused
    answer.end(0.0)
    assert slow.got == quick.got == piece * pieces


def test_a_slow_reader_that_leaves_holds_up_nobody() -> None:
    store = IdempotencyStore(10_000)
    answer = new(store, b"a")
    quick, slow, worker = Client(answer), Client(answer, busy=True), Worker(answer)
    while not worker.is_paused:
        answer.add(EVENT * 1000)
    slow.leave()
    assert not worker.is_paused and not worker.is_unread
    quick.leave()
    assert worker.is_unread


def test_a_kept_answer_comes_to_its_end_without_readers() -> None:
    store = IdempotencyStore(MB)
    answer = new(store, b"a")
    reader, worker = Client(answer), Worker(answer)
    answer.add(EVENT)
    reader.leave()
    answer.add(EVENT)
    assert not worker.is_unread and not worker.is_paused
    answer.end(0.0)
    assert Client(again(store, b"a")).got == EVENT * 2


def test_an_answer_without_readers_that_gets_too_large_is_given_up() -> None:
    store = IdempotencyStore(10_000)
    answer = new(store, b"a")
    worker = Worker(answer)
    answer.add(EVENT * 1000)
    assert worker.is_unread
    answer.abandon(1.0)
    assert is_gone(store, b"a", KEPT_S) and store.kept_bytes == 0


def test_signs_of_life_are_for_those_who_wait_and_not_kept() -> None:
    store = IdempotencyStore(MB)
    answer = new(store, b"a")
    up_to_date, behind = Client(answer), Client(answer, busy=True)
    answer.add(EVENT)
    answer.comment(b": x\n\n")
    answer.add(EVENT)
    answer.end(0.0)
    behind.read_on()
    assert up_to_date.got == EVENT + b": x\n\n" + EVENT
    assert behind.got == Client(again(store, b"a")).got == EVENT * 2


def test_an_answer_is_read_in_pieces_of_whole_events() -> None:
    store = IdempotencyStore(MB * 10)
    answer = new(store, b"a")
    large = b"data: %b\n\n" % (b"y" * 200_000)
    sent = EVENT * 9000 + large + EVENT * 9000
    answer.add(sent)
    pieces = []
    while piece := answer.read(sum(map(len, pieces))):
        pieces.append(piece)
    assert b"".join(pieces) == sent
    assert len(pieces) > 3 and all(piece.endswith(b"\n\n") for piece in pieces)


def test_the_number_of_requests_that_are_remembered_is_bounded() -> None:
    store = IdempotencyStore(MB, max_answers=3)
    finished(store, b"1", 1, 10.0)
    finished(store, b"2", 1, 20.0)
    new(store, b"3", 30.0)
    with pytest.raises(TooManyRequests) as refused:
        store.open(b"4", BODY, 40.0)
    assert refused.value.headers["retry-after-ms"] == "570000"
    again(store, b"1", 40.0)
    new(store, b"4", 10.0 + KEPT_S)


def test_memory_stays_in_its_bounds_whatever_comes() -> None:
    store = IdempotencyStore(100_000, max_answers=50)
    for number in range(2000):
        now = float(number)
        try:
            answer, is_new = store.open(b"%d" % number, BODY, now)
        except TooManyRequests:
            continue
        assert is_new
        for _ in range(number % 7):
            answer.add(EVENT * (number % 1000))
        if number % 5:
            answer.end(now)
        else:
            answer.abandon(now)
        assert store.kept_bytes <= 100_000 and len(store) <= 50


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"caf\xc3\xa9", b"a\tb"])
def test_a_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255 printable ASCII") as refused:
        scope_of(key, None, "/v1/completions")
    assert refused.value.param is None


def test_a_key_holds_for_an_api_key_and_a_path() -> None:
    scopes = {
        scope_of(b"k", None, "/v1/completions"),
        scope_of(b"k2", None, "/v1/completions"),
        scope_of(b"k", b"Bearer one", "/v1/completions"),
        scope_of(b"k", b"Bearer two", "/v1/completions"),
        scope_of(b"k", b"Basic one", "/v1/completions"),
        scope_of(b"k", b"Bearer one", "/v1/embeddings"),
    }
    assert len(scopes) == 6
    assert scope_of(b"k", b"bearer  one ", "/v1/completions") in scopes, "the same API key, written otherwise"


def places(environments: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    found = []
    for environment in environments:
        monkeypatch.setenv(PLACE_VARIABLE, environment.get(PLACE_VARIABLE, ""))
        found.append(own_place())
    return found


def test_the_first_of_several_processes_has_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/run/user/0/chatfleet/gateway-a: b")
    environments = place_environments(folder, 3)
    assert [place.is_owner for place in places(environments, monkeypatch)] == [True, False, False]
    (path,) = {place.path for place in places(environments, monkeypatch)}
    assert path is not None and path.parent == folder


def test_a_process_alone_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places(place_environments(None, 1), monkeypatch) == [Place(is_owner=True, path=None)]


@pytest.mark.parametrize("folder", [None, Path("/", "x" * 100)])
def test_processes_that_cannot_reach_each_other_have_no_owner(
    folder: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places(place_environments(folder, 2), monkeypatch) == [Place(is_owner=False, path=None)] * 2
