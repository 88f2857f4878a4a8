"""Workers that fail, and what their clients notice: nothing, where another worker can do it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest

from support.fake_openai import stream_chunk, stream_head
from support.fleet import beat, until, worker_json
from support.processes import ControllerProcess, GatewayProcess
from support.raw_upstream import CHAT, Call, RawUpstream, Script, ask, event, event_stream, whole
from support.wire import Json, RawConnection, error_object, events, failed

TIMES = ("--connect-timeout=0.5", "--first-event-timeout=0.8", "--stall-timeout=0.8", "--total-timeout=4")
OPTIONS = (*TIMES, "--retry-timeout=1.5", "--keep-alive-interval=60")


@dataclass
class Fleet:
    """A gateway, two workers of ours for the model `one`, and two servers that are not ours for `theirs`."""

    gateway: GatewayProcess
    controller: httpx.Client
    ours: tuple[RawUpstream, RawUpstream]
    theirs: tuple[RawUpstream, RawUpstream]

    def scripts(self, script: Script, model: str = "one") -> list[Call]:
        """Let both workers of a model follow a script; the calls that come from now on."""
        calls: list[Call] = []

        def noted(call: Call) -> object:
            calls.append(call)
            return script(call)

        for upstream in self.ours if model == "one" else self.theirs:
            upstream.forget()
            upstream.script = noted
        return calls

    def post(self, stream: bool = False, **fields: object) -> httpx.Response:
        with self.gateway.http() as http:
            return http.post(CHAT, json=ask(stream, **fields))


@contextmanager
def fleet_of(*options: str) -> Iterator[Fleet]:
    with ExitStack() as stack:
        upstreams = [stack.enter_context(RawUpstream()) for _ in range(4)]
        controller = stack.enter_context(ControllerProcess("--expiry", "600", "--heartbeat-interval", "500"))
        http = stack.enter_context(controller.http())
        for number, upstream in enumerate(upstreams):
            kind, model = ("chatfleet", "one") if number < 2 else ("openai", "theirs")
            beat(http, worker_json(f"w{number}", upstream.url, model, kind=kind))
        gateway = stack.enter_context(GatewayProcess(*options, controllers=[controller], models=["one", "theirs"]))
        yield Fleet(gateway, http, (upstreams[0], upstreams[1]), (upstreams[2], upstreams[3]))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with fleet_of(*OPTIONS) as fleet:
        yield fleet


def first(bad: Callable[[Call], object], good: Callable[[Call], object] = Call.serve) -> Script:
    """A script that is bad once, and then good."""
    seen: list[Call] = []

    def script(call: Call) -> object:
        assert call.body
        seen.append(call)
        return bad(call) if len(seen) == 1 else good(call)

    return script


def silent(call: Call) -> None:
    assert call.body
    call.until_left()


def garbage(call: Call) -> None:
    call.send(b"this is not HTTP\r\n\r\n")
    call.close()


def answer(status: int, *headers: str, code: str | None = None) -> Callable[[Call], None]:
    error = {"message": "no", "type": "server_error", "param": None, "code": code}
    return lambda call: call.send(whole(json.dumps({"error": error}).encode(), *headers, status=status))


# --- before the first event ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        answer(429),
        answer(502),
        answer(503, code="engine_unavailable"),
        answer(500, code="engine_crashed"),
        Call.reset,
        Call.close,
        garbage,
        lambda call: (call.send(b"HTTP/1.1 200 OK\r\ncontent-le"), call.reset()),
        lambda call: (call.send(stream_head()), call.reset()),
    ],
    ids=["429", "502", "503", "engine", "reset", "closed", "garbage", "half a head", "no event"],
)
@pytest.mark.parametrize("model", ["one", "theirs"])
def test_another_worker_answers(fleet: Fleet, model: str, bad: Callable[[Call], object], stream: bool) -> None:
    calls = fleet.scripts(first(bad), model)
    response = fleet.post(stream, model=model)
    if len(calls) == 1:  # an engine's code means nothing of a server that is not ours
        failed(response, 500)
        assert model == "theirs"
        return
    assert response.status_code == 200, response.text
    assert len(calls) == 2 and calls[0].body == calls[1].body


def test_a_request_that_two_workers_died_of_is_given_to_no_other(fleet: Fleet) -> None:
    calls = fleet.scripts(lambda call: (call.body, call.reset()))
    body = ask()
    with fleet.gateway.http() as http:
        response = http.post(CHAT, json=body)
        failed(response, 500, code="worker_crashed")
        assert response.headers["x-should-retry"] == "false" and len(calls) == 2
        again = http.post(CHAT, json=body)
        failed(again, 500, code="worker_crashed")
        assert again.headers["x-should-retry"] == "false" and len(calls) == 2
        fleet.scripts(Call.serve)
        assert http.post(CHAT, json=ask()).status_code == 200


def test_when_all_are_busy_the_client_is_told_when_there_is_room(fleet: Fleet) -> None:
    for upstream, delay_ms in zip(fleet.ours, (7000, 300), strict=True):
        upstream.forget()
        upstream.script = answer(429, f"retry-after-ms: {delay_ms}", "x-should-retry: true")
    response = fleet.post()
    failed(response, 429)
    assert (response.headers["retry-after-ms"], response.headers["x-should-retry"]) == ("300", "true")


def test_a_worker_that_cannot_be_reached_in_time() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        ExitStack() as waiting,
        ControllerProcess("--expiry", "600") as controller,
        controller.http() as http,
    ):
        for _ in range(2):  # what fills its queue, so that no further connection comes about
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        beat(http, worker_json("full", f"http://127.0.0.1:{full.getsockname()[1]}", "one"))
        options = ("--connect-timeout=0.2", "--retry-timeout=0")
        with GatewayProcess(*options, controllers=[controller], models=["one"]) as gateway, gateway.http() as client:
            failed(client.post(CHAT, json=ask()), 504, code="connect_timeout")


def test_a_stream_that_does_not_begin_is_begun_elsewhere(fleet: Fleet) -> None:
    calls = fleet.scripts(first(silent))
    assert fleet.post(stream=True).status_code == 200 and len(calls) == 2
    fleet.scripts(silent)
    response = fleet.post(stream=True)
    failed(response, 504, code="first_event_timeout")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.long
def test_no_request_takes_longer_than_any_may(fleet: Fleet) -> None:
    calls = fleet.scripts(silent)
    response = fleet.post()
    failed(response, 504, code="total_timeout")
    assert response.headers["x-should-retry"] == "false"
    until(lambda: all(call.is_closed for call in calls), "the worker is left")

    def endless(call: Call) -> None:
        call.send(stream_head())
        while True:
            call.send(stream_chunk(event("{}")))
            time.sleep(0.02)

    fleet.scripts(endless)
    *_, last = events(fleet.post(stream=True).content)
    assert error_object(last)["code"] == "total_timeout"


def test_a_request_waits_for_a_worker_that_comes_soon() -> None:
    with (
        ControllerProcess() as controller,
        controller.http() as http,
        RawUpstream() as upstream,
        GatewayProcess("--retry-timeout=60", controllers=[controller]) as gateway,
        RawConnection(gateway.url) as connection,
    ):
        connection.post(CHAT, ask())
        beat(http, worker_json("late", upstream.url, "one"))
        assert connection.read_response().status == 200


def test_more_requests_than_a_gateway_takes() -> None:
    with fleet_of("--max-requests=1") as fleet, RawConnection(fleet.gateway.url) as connection:
        fleet.scripts(silent)
        connection.post(CHAT, ask())
        until(lambda: fleet.ours[0].calls or fleet.ours[1].calls, "a request on its way")
        response = fleet.post()
        failed(response, 429, code="too_many_requests")
        assert response.headers["x-should-retry"] == "true"
        assert 0 < int(response.headers["retry-after-ms"]) <= 60_000


# --- in the middle of a stream ---

START = ":r chatcmpl-7 1700000000\n"


def told(*lines_and_data: tuple[str, str]) -> bytes:
    """Events of a worker of ours, with the ids of their tokens."""
    return b"".join(stream_chunk(f"{lines}data: {data}\n\n".encode()) for lines, data in lines_and_data)


def breaks_after(*begun: tuple[str, str], how: Callable[[Call], object] = Call.reset) -> Callable[[Call], None]:
    def script(call: Call) -> None:
        call.send(stream_head() + told(*begun))
        how(call)

    return script


BEGUN = ((f"{START}:r 0\n", '"role"'), (":r 0,17,29\n", '"a"'), (":r 1\n", '"role1"'), (":r 1,5 stop\n", '"b"'))


def half_a_frame(call: Call) -> None:
    call.send(b"40\r\n:r 0,33\ndata: ")
    call.reset()


def no_frame(call: Call) -> None:
    call.send(b"\x00\xffgarbage\r\n\r\n")
    call.close()


@pytest.mark.parametrize("how", [Call.reset, Call.close, half_a_frame, no_frame, silent])
def test_another_worker_of_ours_goes_on_with_the_ids(fleet: Fleet, how: Callable[[Call], object]) -> None:
    calls = fleet.scripts(first(breaks_after(*BEGUN, how=how), lambda call: call.send(event_stream('"c"'))))
    body = ask(True, n=2)
    with fleet.gateway.http() as http:
        response = http.post(CHAT, json=body)
    assert events(response.content) == ['"role"', '"a"', '"role1"', '"b"', '"c"', "[DONE]"]
    assert calls[0].headers["x-chatfleet-recovery"] == "ids" and calls[0].json == body
    assert calls[1].headers["x-chatfleet-recovery"] == "resume"
    choices = [{"index": 0, "token_ids": [17, 29]}, {"index": 1, "token_ids": [5], "finish_reason": "stop"}]
    resume = {"id": "chatcmpl-7", "created": 1700000000, "choices": choices}
    assert calls[1].json == {"resume": resume, "request": body}


def test_it_goes_on_as_often_as_it_must(fleet: Fleet) -> None:
    pieces = [breaks_after((f"{START}:r 0,{number}\n", f'"{number}"')) for number in range(4)]
    scripts: Iterator[Callable[[Call], object]] = iter([*pieces, lambda call: call.send(event_stream())])
    calls = fleet.scripts(lambda call: (call.body, next(scripts)(call)))
    assert events(fleet.post(stream=True).content) == ['"0"', '"1"', '"2"', '"3"', "[DONE]"]
    assert calls[-1].json["resume"]["choices"] == [{"index": 0, "token_ids": [0, 1, 2, 3]}]


def test_what_kills_every_worker_in_the_middle_ends_with_one_error(fleet: Fleet) -> None:
    calls = fleet.scripts(first(breaks_after(*BEGUN), Call.reset))
    body = ask(True)
    with fleet.gateway.http() as http:
        *text, last = events(http.post(CHAT, json=body).content)
        assert text == ['"role"', '"a"', '"role1"', '"b"'] and error_object(last)["code"] == "worker_crashed"
        assert len(calls) == 2
        failed(http.post(CHAT, json=body), 500, code="worker_crashed")


def test_without_another_worker_in_time_there_is_one_error(fleet: Fleet) -> None:
    fleet.scripts(first(breaks_after(*BEGUN), answer(503)))
    *_, last = events(fleet.post(stream=True).content)
    error_object(last)


def test_a_stream_that_lacks_only_its_end_gets_it(fleet: Fleet) -> None:
    ending = (*BEGUN, (":r usage\n", '"usage"'))
    calls = fleet.scripts(first(breaks_after(*ending), Call.reset))
    assert events(fleet.post(stream=True).content)[-2:] == ['"usage"', "[DONE]"] and len(calls) == 1


def test_who_takes_a_stream_over_has_the_time_of_a_beginning() -> None:
    with fleet_of("--stall-timeout=0.5", "--first-event-timeout=60") as fleet:

        def slow(call: Call) -> None:
            assert call.body
            time.sleep(1.5)  # a queue, or a long prompt
            call.send(event_stream('"c"'))

        fleet.scripts(first(breaks_after(*BEGUN), slow))
        assert events(fleet.post(stream=True).content)[-2:] == ['"c"', "[DONE]"]


def test_a_client_that_leaves_a_silent_stream_is_noticed_at_once() -> None:
    """Two comments would have to meet its absence, else, and the next is a minute away."""
    with fleet_of("--keep-alive-interval=60", "--stall-timeout=600") as fleet:
        calls = fleet.scripts(lambda call: (call.send(stream_head() + told(*BEGUN)), silent(call)))
        with RawConnection(fleet.gateway.url) as connection:
            connection.post(CHAT, ask(True))
            connection.read_head()
            next(connection.read_chunks())
        until(lambda: calls[0].is_closed, "the worker is left")


def test_more_than_is_kept_is_one_error() -> None:
    with fleet_of("--recovery-buffer-kb=1") as fleet:
        many = tuple((f":r 0,{number}\n", '"a"') for number in range(1000))
        fleet.scripts(first(breaks_after((f"{START}:r 0\n", '"role"'), *many)))
        *text, last = events(fleet.post(stream=True).content)
        assert len(text) == 1001 and "recovery-buffer-kb" in error_object(last)["message"]


def test_an_error_of_the_worker_itself_is_passed_on(fleet: Fleet) -> None:
    error = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": "c"}})
    calls = fleet.scripts(lambda call: call.send(stream_head() + told(*BEGUN, ("", error)) + stream_chunk(b"")))
    assert events(fleet.post(stream=True).content)[-1] == error and len(calls) == 1


# --- servers that are not ours ---


def chunk(content: str, id: str, **more: object) -> str:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": more.pop("finish", None)}
    return json.dumps({"id": id, "created": 1, "choices": [choice], **more})


THEIRS: tuple[tuple[str, str], ...] = (("", chunk("Once ", "first")), ("", chunk("upon ", "first")))


def test_plain_text_goes_on_at_a_server_that_is_not_ours(fleet: Fleet) -> None:
    rest = [chunk("a time.", "second", finish="stop"), json.dumps({"id": "second", "choices": [], "usage": USAGE})]
    calls = fleet.scripts(first(breaks_after(*THEIRS), lambda call: call.send(event_stream(*rest))), "theirs")
    *data, done = events(fleet.post(stream=True, model="theirs", max_tokens=9).content)
    parts: list[Json] = [json.loads(item) for item in data]
    assert done == "[DONE]" and {part["id"] for part in parts} == {"first"}
    assert "".join(c["delta"]["content"] for part in parts for c in part["choices"]) == "Once upon a time."
    assert parts[-1]["usage"] == {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
    asked = calls[1].json
    assert asked["messages"][-1] == {"role": "assistant", "content": "Once upon "}
    assert (asked["continue_final_message"], asked["add_generation_prompt"], asked["max_tokens"]) == (True, False, 7)


USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def test_what_is_no_plain_text_ends_with_one_error(fleet: Fleet) -> None:
    calls = fleet.scripts(first(breaks_after(*THEIRS)), "theirs")
    *text, last = events(fleet.post(stream=True, model="theirs", logprobs=True).content)
    assert len(text) == 2 and "logprobs" in error_object(last)["message"] and len(calls) == 1
