"""Requests with an Idempotency-Key: sent as often as one likes, answered once, by all processes of a gateway."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from support.fake_openai import stream_chunk, stream_head
from support.fleet import statuses, until
from support.metrics import parsed, scrape
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.raw_upstream import CHAT, COMPLETIONS, Call, RawFleet, ask, event, event_stream, hot, raw_fleet, whole
from support.wire import PATIENCE_S, Json, RawConnection, RawResponse, error_object, events, failed, head, user

_KEYS = count()
REPLAYED = "idempotent-replayed"


def new_key() -> str:
    return f"key-{next(_KEYS)}"


def keyed(key: str) -> str:
    return f"Idempotency-Key: {key}"


def send(url: str, body: Json | bytes, key: str, *headers: str, path: str = CHAT) -> RawResponse:
    """On a connection of its own."""
    with RawConnection(url) as connection:
        return connection.send(hot(body, keyed(key), *headers, path=path)).read_response()


def error_code(response: RawResponse) -> str | None:
    code: str | None = error_object(response.body)["code"]
    return code


class Held:
    """A script that gives a stream's first event, and the rest when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, call: Call) -> None:
        first, *rest = ["1", "2", call.headers["x-request-id"], "[DONE]"]
        call.send(stream_head(connection="keep-alive") + stream_chunk(event(first)))
        assert self.go_on.wait(PATIENCE_S)
        call.send(b"".join(stream_chunk(event(text)) for text in rest) + stream_chunk(b""))


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeat_gets_the_first_answer(fleet: RawFleet, stream: bool) -> None:
    body, key = ask(stream), new_key()
    first = send(fleet.gateway.url, body, key, "x-request-id: one")
    second = send(fleet.gateway.url, body, key, "x-request-id: two")
    assert first.status == second.status == 200
    assert first.body == second.body and b"one" in first.body
    assert [response.headers.get(REPLAYED) for response in (first, second)] == [None, "true"]
    assert [response.headers["x-request-id"] for response in (first, second)] == ["one", "two"]
    assert first.headers["content-type"] == second.headers["content-type"]
    assert len(fleet.upstream.calls) == 1
    assert "idempotency-key" not in fleet.upstream.calls[0].headers


def test_requests_on_one_connection_are_told_apart(fleet: RawFleet) -> None:
    key = new_key()
    with fleet.connect() as connection:
        for number, body in enumerate([ask(), ask(), ask()]):
            bodies = [
                connection.send(hot(body, *headers)).read_response().body
                for headers in ([keyed(f"{key}{number}")], [keyed(f"{key}{number}")], [], [])
            ]
            assert bodies[0] == bodies[1] and len(set(bodies)) == 3
    assert len(fleet.upstream.calls) == 9


@pytest.mark.parametrize("stream", [False, True])
def test_twenty_at_once_are_answered_by_one_generation(fleet: RawFleet, stream: bool) -> None:
    body, key = ask(stream), new_key()
    go_on = threading.Event()

    def wait(call: Call) -> None:
        assert go_on.wait(PATIENCE_S)
        call.serve()

    fleet.upstream.script = wait
    with ExitStack() as stack:
        connections = [stack.enter_context(fleet.connect()) for _ in range(20)]
        with fleet.gateway.http() as http:
            before = _replays(http)
            for connection in connections:
                connection.send(hot(body, keyed(key)))
            until(lambda: _replays(http) - before == 19 or len(fleet.upstream.calls) > 1, "nineteen that wait")
        go_on.set()
        responses = [connection.read_response() for connection in connections]
    assert {response.status for response in responses} == {200}
    assert len({response.body for response in responses}) == 1
    assert sum(REPLAYED in response.headers for response in responses) == 19
    assert len(fleet.upstream.calls) == 1


def _replays(http: httpx.Client) -> float:
    return scrape(http).total("chatfleet:idempotent_replays_total")


def test_a_client_that_left_in_the_middle_gets_the_stream_from_its_start(fleet: RawFleet) -> None:
    body, key, held = ask(stream=True), new_key(), Held()
    fleet.upstream.script = held
    with fleet.connect() as connection:
        connection.send(hot(body, keyed(key), "x-request-id: the-first"))
        connection.read_head()
        assert next(connection.read_chunks()) == event("1")
        connection.reset()
    with fleet.connect() as connection:
        connection.send(hot(body, keyed(key)))
        assert connection.read_head()[1][REPLAYED] == "true"
        chunks = connection.read_chunks()
        assert next(chunks) == event("1"), "while the rest is still to come"
        held.go_on.set()
        assert events(event("1") + b"".join(chunks)) == ["1", "2", "the-first", "[DONE]"]
    assert events(send(fleet.gateway.url, body, key).body) == ["1", "2", "the-first", "[DONE]"]
    assert len(fleet.upstream.calls) == 1 and not fleet.upstream.calls[0].is_closed


def test_an_answer_is_finished_for_a_client_that_is_gone(fleet: RawFleet) -> None:
    body, key = ask(), new_key()
    go_on = threading.Event()

    def wait(call: Call) -> None:
        assert go_on.wait(PATIENCE_S)
        call.serve()

    fleet.upstream.script = wait
    with fleet.connect() as connection:
        connection.send(hot(body, keyed(key), "x-request-id: the-first"))
        fleet.upstream.until_called()
        connection.reset()
    go_on.set()
    assert json.loads(send(fleet.gateway.url, body, key).body) == {"id": "the-first"}
    assert len(fleet.upstream.calls) == 1


def test_another_body_under_a_key_is_refused(fleet: RawFleet) -> None:
    key, body = new_key(), ask()
    send(fleet.gateway.url, body, key)
    refused = send(fleet.gateway.url, ask(), key)
    assert (refused.status, error_code(refused)) == (422, "idempotency_key_reused")
    assert refused.headers["x-should-retry"] == "false"
    assert send(fleet.gateway.url, {**body, "prompt": "hi"}, key, path=COMPLETIONS).status == 200, "of another path"
    assert len(fleet.upstream.calls) == 2


@pytest.mark.parametrize("headers", [["Idempotency-Key: "], ["Idempotency-Key: " + "x" * 256], ["Idempotency-Key: é"]])
def test_a_key_that_is_none_is_refused(fleet: RawFleet, headers: list[str]) -> None:
    with fleet.connect() as connection:
        refused = connection.send(hot(ask(), *headers)).read_response()
    assert refused.status == 400 and "1 to 255 printable ASCII" in error_object(refused.body)["message"]
    assert not fleet.upstream.calls


def test_two_keys_are_refused(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        refused = connection.send(hot(ask(), keyed("a"), keyed("b"))).read_response()
    assert refused.status == 400 and "more than once" in error_object(refused.body)["message"]


def test_a_client_cannot_name_what_a_key_holds_for(fleet: RawFleet) -> None:
    """As the gateway's own processes do."""
    key, scope = new_key(), f"x-chatfleet-idempotency-scope: {'00' * 16}"
    body = ask()
    with fleet.connect() as connection:
        responses = [connection.send(hot(body, scope)).read_response() for _ in range(2)]
        assert len({response.body for response in responses}) == 2, "a header that means nothing here"
    send(fleet.gateway.url, body, key, scope)
    assert send(fleet.gateway.url, ask(), new_key(), scope).status == 200


@pytest.mark.parametrize("status", [400, 500, 503])
def test_errors_are_not_kept(fleet: RawFleet, status: int) -> None:
    body, key = ask(), new_key()
    fleet.upstream.script = lambda call: call.send(whole(b'{"error": {"message": "no"}}', status=status))
    assert send(fleet.gateway.url, body, key).status == status
    fleet.upstream.script = Call.serve
    again = send(fleet.gateway.url, body, key)
    assert again.status == 200 and REPLAYED not in again.headers
    assert send(fleet.gateway.url, body, key).body == again.body
    assert len(fleet.upstream.calls) == 2


def test_an_error_is_told_to_all_who_wait(fleet: RawFleet) -> None:
    body, key = ask(), new_key()
    go_on = threading.Event()

    def refuse(call: Call) -> None:
        assert go_on.wait(PATIENCE_S)
        call.send(whole(b'{"error": {"message": "no"}}', status=400))

    fleet.upstream.script = refuse
    with ExitStack() as stack, fleet.gateway.http() as http:
        before = _replays(http)
        connections = [stack.enter_context(fleet.connect()).send(hot(body, keyed(key))) for _ in range(3)]
        until(lambda: _replays(http) - before == 2, "two that wait")
        go_on.set()
        assert [connection.read_response().status for connection in connections] == [400] * 3
    assert len(fleet.upstream.calls) == 1


def test_a_stream_that_broke_is_kept_as_it_was(fleet: RawFleet) -> None:
    body, key = ask(stream=True), new_key()

    def break_off(call: Call) -> None:
        call.send(stream_head(connection="keep-alive") + stream_chunk(event("1")))
        call.reset()

    fleet.upstream.script = break_off
    first = send(fleet.gateway.url, body, key)
    one, error = events(first.body)
    assert one == "1" and error_object(error)
    fleet.upstream.script = Call.serve
    assert send(fleet.gateway.url, body, key).body == first.body
    assert len(fleet.upstream.calls) == 1


def test_what_is_no_json_is_refused_as_ever(fleet: RawFleet) -> None:
    key = new_key()
    refused = send(fleet.gateway.url, b"{", key)
    assert refused.status == 400
    assert send(fleet.gateway.url, ask(), key).status == 200, "nothing was answered under the key"


def test_a_large_request_is_answered_once(fleet: RawFleet) -> None:
    body, key = ask(user="x" * 3_000_000), new_key()
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda _: send(fleet.gateway.url, body, key), range(4)))
    assert len({response.body for response in responses}) == 1 == len(fleet.upstream.calls)


def test_a_client_that_does_not_read_holds_up_nobody(fleet: RawFleet) -> None:
    body, key = ask(stream=True), new_key()
    text = "x" * 1000
    fleet.upstream.script = lambda call: call.send(event_stream(*[text] * 20_000))
    with fleet.connect() as unread:
        unread.send(hot(body, keyed(key)))
        fleet.upstream.until_called()
        expected = [text] * 20_000 + ["[DONE]"]
        assert events(send(fleet.gateway.url, body, key).body) == expected
        assert events(unread.read_response().body) == expected, "it gets all of it when it reads"
    assert len(fleet.upstream.calls) == 1


def test_signs_of_life_reach_those_who_wait_and_are_not_repeated() -> None:
    with raw_fleet("--keep-alive-interval", "0.2") as fleet:
        body, key, held = ask(stream=True), new_key(), Held()
        fleet.upstream.script = held
        with fleet.connect() as first, fleet.connect() as second:
            for connection in (first, second):
                connection.send(hot(body, keyed(key), "x-request-id: it"))
                connection.read_head()
            streams = [connection.read_chunks() for connection in (first, second)]
            for chunks in streams:
                while next(chunks) != b": keep-alive\n\n":
                    pass
            held.go_on.set()
            for chunks in streams:
                assert b"".join(chunks).endswith(event("[DONE]"))
        assert events(send(fleet.gateway.url, body, key).body) == ["1", "2", "it", "[DONE]"]


def test_a_stream_that_broke_before_its_first_event_is_not_kept() -> None:
    with raw_fleet("--keep-alive-interval", "0.2") as fleet:
        body, key = ask(stream=True), new_key()
        begun = threading.Event()

        def refuse(call: Call) -> None:
            assert begun.wait(PATIENCE_S)
            call.send(whole(b'{"error": {"message": "no"}}', status=400))

        fleet.upstream.script = refuse
        with fleet.connect() as connection:
            connection.send(hot(body, keyed(key)))
            assert connection.read_head()[0] == 200, "for a sign of life"
            begun.set()
            assert b'"error"' in b"".join(connection.read_chunks())
        fleet.upstream.script = Call.serve
        again = send(fleet.gateway.url, body, key)
        assert events(again.body)[-1] == "[DONE]" and REPLAYED not in again.headers


def test_an_answer_that_had_to_go_is_not_made_again() -> None:
    with raw_fleet("--idempotency-buffer-mb", "1") as fleet:
        fleet.upstream.script = lambda call: call.send(whole(json.dumps({"text": "x" * 400_000}).encode()))
        body, keys = ask(), [new_key() for _ in range(3)]
        for key in keys:
            assert send(fleet.gateway.url, body, key).status == 200
        gone = send(fleet.gateway.url, body, keys[0])
        assert (gone.status, error_code(gone)) == (409, "idempotent_answer_gone")
        assert gone.headers["x-should-retry"] == "false"
        assert [send(fleet.gateway.url, body, key).status for key in keys[1:]] == [200, 200]
        assert len(fleet.upstream.calls) == 3


def test_an_answer_too_large_to_keep_reaches_its_client() -> None:
    with raw_fleet("--idempotency-buffer-mb", "1") as fleet:
        text = "x" * 1000
        fleet.upstream.script = lambda call: call.send(event_stream(*[text] * 5000))
        body, key = ask(stream=True), new_key()
        assert events(send(fleet.gateway.url, body, key).body) == [text] * 5000 + ["[DONE]"]
        assert send(fleet.gateway.url, body, key).status == 409
        assert len(fleet.upstream.calls) == 1


@pytest.mark.long
def test_a_slow_client_is_told_that_its_stream_was_given_up() -> None:
    """Of an answer that is not kept, so that the worker has to wait for the client."""
    with raw_fleet("--idempotency-buffer-mb", "1", "--total-timeout", "2") as fleet, fleet.gateway.http() as http:
        text = "x" * 1000
        fleet.upstream.script = lambda call: call.send(event_stream(*[text] * 50_000))
        with fleet.connect() as connection:
            connection.send(hot(ask(stream=True), keyed(new_key())))
            fleet.upstream.until_called()
            until(lambda: scrape(http).total("chatfleet:requests_in_flight") == 0, "the end of its time")
            *_, last = events(connection.read_response().body)
        assert error_object(last)["code"] == "total_timeout"


def test_a_key_is_one_clients_own() -> None:
    with raw_fleet("--api-key", "alice", "--api-key", "bob", api_key="alice") as fleet:
        body, key = ask(), new_key()
        answers = [send(fleet.gateway.url, body, key, f"authorization: Bearer {who}") for who in ("alice", "bob") * 2]
        assert answers[0].body == answers[2].body != answers[1].body == answers[3].body
        assert [REPLAYED in answer.headers for answer in answers] == [False, False, True, True]
        assert send(fleet.gateway.url, body, key).status == 401
        assert len(fleet.upstream.calls) == 2


def test_a_request_counts_once_and_its_repeats_as_such() -> None:
    with raw_fleet("--access-log") as fleet, fleet.gateway.http() as http:
        body, key = ask(), new_key()
        for _ in range(3):
            send(fleet.gateway.url, body, key)
        send(fleet.gateway.url, ask(), key)
        scraped = scrape(http)
        assert scraped.value("chatfleet:requests_total", model_name="one", endpoint=CHAT, status="200") == 1
        assert scraped.value("chatfleet:idempotent_replays_total", endpoint=CHAT) == 2
        assert scraped.value("chatfleet:requests_total", model_name="", endpoint=CHAT, status="422") == 1
        assert scraped.total("chatfleet:requests_in_flight") == 0
        until(lambda: fleet.gateway.output.count(f"POST {CHAT} 422") == 1, "the last line of the log")
        assert fleet.gateway.output.count(f"POST {CHAT} 200") == 3


def test_a_gateway_that_stops_finishes_what_somebody_waits_for() -> None:
    with raw_fleet() as fleet:
        body, key, held = ask(stream=True), new_key(), Held()
        fleet.upstream.script = held
        with fleet.connect() as connection, fleet.connect() as gone:
            gone.send(hot(ask(stream=True), keyed(new_key())))
            gone.read_head()
            gone.reset()
            connection.send(hot(body, keyed(key)))
            connection.read_head()
            os.kill(fleet.gateway.pid, signal.SIGTERM)
            with ThreadPoolExecutor(1) as pool:
                threading.Timer(0.5, held.go_on.set).start()
                chunks = pool.submit(lambda: b"".join(connection.read_chunks()))
                assert events(chunks.result())[-1] == "[DONE]"
        assert fleet.gateway.stop() == 0


# Several processes


@pytest.fixture(scope="module")
def three() -> Iterator[RawFleet]:
    with raw_fleet("--processes", "3", "--access-log") as fleet:
        until(lambda: [fleet.gateway.served() for _ in range(12)] == [{"one"}] * 12, "the model at all processes")
        yield fleet


@pytest.fixture
def processes(three: RawFleet) -> RawFleet:
    three.upstream.forget()
    until(lambda: [three.gateway.served() for _ in range(12)] == [{"one"}] * 12, "the model at all processes")
    return three


def owner_of(fleet: RawFleet) -> psutil.Process:
    """The process that has the answers."""

    def find() -> list[psutil.Process]:
        children = psutil.Process(fleet.gateway.pid).children()
        return [child for child in children if child.environ().get("CHATFLEET_IDEMPOTENCY_PLACE", "")[:6] == "owner:"]

    return until(find, "an owner")[0]


def elsewhere(fleet: RawFleet, stack: ExitStack, owner: psutil.Process) -> RawConnection:
    """A connection to a process that is not the owner."""
    while True:
        connection = stack.enter_context(fleet.connect())
        connection.send(head("GET", "/health")).read_response()
        port = connection.sock.getsockname()[1]
        if port not in {its.raddr.port for its in owner.net_connections("tcp") if its.raddr}:
            return connection


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
def test_processes_answer_with_one_generation(processes: RawFleet, stream: bool) -> None:
    body, key = ask(stream), new_key()
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: send(processes.gateway.url, body, key), range(40)))
    assert {response.status for response in responses} == {200}
    assert len({response.body for response in responses}) == 1
    assert sum(REPLAYED in response.headers for response in responses) == 39
    assert len({response.headers["x-request-id"] for response in responses}) == 40
    assert len(processes.upstream.calls) == 1


@pytest.mark.long
def test_a_stream_comes_through_another_process_as_it_is_made(processes: RawFleet) -> None:
    body, key, held = ask(stream=True), new_key(), Held()
    processes.upstream.script = held
    with ExitStack() as stack:
        connection = elsewhere(processes, stack, owner_of(processes))
        connection.send(hot(body, keyed(key), "x-request-id: it"))
        connection.read_head()
        assert next(connection.read_chunks()) == event("1")
        connection.reset()
        connection = elsewhere(processes, stack, owner_of(processes))
        connection.send(hot(body, keyed(key)))
        connection.read_head()
        chunks = connection.read_chunks()
        assert next(chunks) == event("1")
        held.go_on.set()
        assert events(event("1") + b"".join(chunks)) == ["1", "2", "it", "[DONE]"]
    assert len(processes.upstream.calls) == 1


@pytest.mark.long
def test_refusals_come_through_another_process_as_they_are(processes: RawFleet) -> None:
    key = new_key()
    with ExitStack() as stack:
        connection = elsewhere(processes, stack, owner_of(processes))
        processes.upstream.script = lambda call: call.send(
            whole(b'{"error": {"message": "no", "type": "t", "param": "p", "code": "c"}}', status=400)
        )
        refused = connection.send(hot(ask(), keyed(key))).read_response()
        assert refused.status == 400
        assert error_object(refused.body) == {"message": "no", "type": "t", "param": "p", "code": "c"}
        processes.upstream.script = lambda call: call.send(whole(b"{}", "x-chatfleet-ignored: seed, user"))
        answer = connection.send(hot(ask(), keyed(key))).read_response()
        assert answer.headers["x-chatfleet-ignored"] == "seed, user" and REPLAYED not in answer.headers
        reused = connection.send(hot(ask(), keyed(key))).read_response()
        assert (reused.status, error_code(reused)) == (422, "idempotency_key_reused")
        assert reused.headers["x-should-retry"] == "false"


def test_a_large_answer_comes_through_another_process_to_a_slow_client(processes: RawFleet) -> None:
    body, key = ask(stream=True), new_key()
    text = "x" * 1000
    processes.upstream.script = lambda call: call.send(event_stream(*[text] * 20_000))
    with ExitStack() as stack:
        connection = elsewhere(processes, stack, owner_of(processes))
        connection.send(hot(body, keyed(key)))
        expected = [text] * 20_000 + ["[DONE]"]
        assert events(send(processes.gateway.url, body, key).body) == expected
        assert events(connection.read_response().body) == expected


def test_a_request_counts_once_whichever_processes_it_passes(processes: RawFleet) -> None:
    """At a path that no other test asks these processes for."""
    body, key = ask(), new_key()
    with ExitStack() as stack:
        connection = elsewhere(processes, stack, owner_of(processes))

        def numbers() -> tuple[float, float]:
            """As this process says, which knows its own best."""
            scraped = parsed(connection.send(head("GET", "/metrics")).read_response().body.decode())
            return (
                scraped.total("chatfleet:requests_total", endpoint=COMPLETIONS),
                scraped.total("chatfleet:idempotent_replays_total", endpoint=COMPLETIONS),
            )

        for _ in range(5):
            connection.send(hot(body, keyed(key), path=COMPLETIONS)).read_response()
        until(lambda: numbers() == (1, 4), "one request and four replays")
        until(lambda: processes.gateway.output.count(f"POST {COMPLETIONS} 200") == 5, "a line for each")


def test_without_the_owner_requests_are_refused_until_it_is_back(processes: RawFleet) -> None:
    body, key, held = ask(stream=True), new_key(), Held()
    processes.upstream.script = held
    owner = owner_of(processes)
    with ExitStack() as stack:
        begun, waiting = (elsewhere(processes, stack, owner) for _ in range(2))
        begun.send(hot(body, keyed(key)))
        begun.read_head()
        os.kill(owner.pid, signal.SIGSTOP)  # nobody may take its place yet
        waiting.send(hot(ask(), keyed(new_key())))
        os.kill(owner.pid, signal.SIGKILL)
        assert json.loads(events(b"".join(begun.read_chunks()))[-1])["error"]["code"] == "idempotency_unavailable"
        refused = waiting.read_response()
        assert (refused.status, error_code(refused)) == (503, "idempotency_unavailable")
        assert refused.headers["x-should-retry"] == "true"
        held.go_on.set()
        processes.upstream.script = Call.serve
        until(lambda: waiting.send(hot(body, keyed(key))).read_response().status == 200, "another owner")


def test_the_owners_socket_is_for_its_siblings(processes: RawFleet) -> None:
    path = Path(owner_of(processes).environ()["CHATFLEET_IDEMPOTENCY_PLACE"].removeprefix("owner:"))
    assert path.is_socket() and path.parent.stat().st_mode & 0o777 == 0o700
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
        failed(http.post(CHAT, json=ask(), headers={"Idempotency-Key": "k"}), 400)
    assert not processes.upstream.calls


@pytest.mark.long
def test_processes_that_share_no_folder_refuse_keys(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "file")}
    with raw_fleet("--processes", "2", env=env) as fleet:
        refused = send(fleet.gateway.url, ask(), new_key())
        assert (refused.status, error_code(refused)) == (503, "idempotency_unavailable")
        assert refused.headers["x-should-retry"] == "false"
        until(lambda: "requests with an Idempotency-Key are refused" in fleet.gateway.output, "a word to the operator")
        with fleet.connect() as connection:
            until(lambda: connection.send(hot(ask())).read_response().status == 200, "all else is answered")


# Real workers


@pytest.mark.long
def test_what_a_killed_worker_began_is_repeated_as_its_client_got_it() -> None:
    body = {"model": "m", "messages": user("tell me"), "max_tokens": 120, "ignore_eos": True, "stream": True}
    key = new_key()
    with ExitStack() as stack:
        controller = stack.enter_context(ControllerProcess())
        arguments = ("--controller-url", controller.url, "--engine", "simulated", "--model-name", "m")
        workers = [stack.enter_context(WorkerProcess(*arguments, "--sim-itl-ms", "10")) for _ in range(2)]
        gateway = stack.enter_context(GatewayProcess(controllers=[controller], models=["m"]))
        with controller.http() as http:
            until(lambda: len(statuses(http)) == 2, "two workers")
        connection = stack.enter_context(RawConnection(gateway.url))
        connection.send(hot(body, keyed(key)))
        connection.read_head()
        chunks = connection.read_chunks()
        seen = b"".join(next(chunks) for _ in range(20))
        busy = until(lambda: [worker for worker in workers if _running(worker)], "a busy worker")[0]
        os.kill(busy.pid, signal.SIGKILL)
        busy.stop()
        seen += b"".join(chunks)
        assert events(seen)[-1] == "[DONE]" and "error" not in seen.decode()
        assert send(gateway.url, body, key).body == seen
        with gateway.http() as http:
            assert scrape(http).total("chatfleet:requests_total", model_name="m") == 1


def _running(worker: WorkerProcess) -> float:
    with worker.http() as http:
        return scrape(http).total("vllm:num_requests_running")


def test_the_sdk_sends_keys(fleet: RawFleet) -> None:
    fleet.upstream.script = lambda call: call.send(
        whole(
            json.dumps(
                {
                    "id": call.headers["x-request-id"],
                    "object": "chat.completion",
                    "created": 1,
                    "model": "one",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
                    ],
                }
            ).encode()
        )
    )
    messages: Any = ask()["messages"]
    with openai.OpenAI(base_url=f"{fleet.gateway.url}/v1", api_key="none", max_retries=0) as client:
        key = {"Idempotency-Key": new_key()}
        first, second = (
            client.chat.completions.with_raw_response.create(model="one", messages=messages, extra_headers=key)
            for _ in range(2)
        )
        assert first.parse().id == second.parse().id
        assert second.headers[REPLAYED] == "true" and REPLAYED not in first.headers
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(model="one", messages=ask()["messages"], extra_headers=key)


def test_a_browser_page_may_read_that_an_answer_is_repeated(fleet: RawFleet) -> None:
    response = send(fleet.gateway.url, ask(), new_key(), "origin: https://app.example.com")
    assert REPLAYED in response.headers["access-control-expose-headers"]


def test_keys_mean_nothing_to_what_generates_nothing(fleet: RawFleet) -> None:
    with fleet.gateway.http() as http:
        assert http.get("/v1/models", headers={"Idempotency-Key": "x" * 300}).status_code == 200
        failed(http.post("/v1/nothing", json={}, headers={"Idempotency-Key": "k"}), 404)
