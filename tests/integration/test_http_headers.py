"""Which headers cross a gateway: those on its lists, never those about one connection (RFC 9110, 7.6.1)."""

import json

import pytest

from support.fake_openai import stream_chunk, stream_head
from support.raw_upstream import RawFleet, ask, event, hot, whole
from support.wire import head

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOP_BY_HOP = (
    "connection: keep-alive, x-named, upgrade, te",
    "x-named: secret",
    "keep-alive: timeout=5, secret",
    "proxy-connection: secret",
    "proxy-authorization: secret",
    "proxy-authenticate: secret",
    "te: trailers, secret",
    "trailer: x-secret",
    "upgrade: secret",
    "via: secret",
)
TO_WORKER = {
    "host",
    "user-agent",
    "content-type",
    "content-length",
    "traceparent",
    "tracestate",
    "x-request-id",
    "authorization",
}
TO_CLIENT = {
    "date",
    "content-type",
    "content-length",
    "transfer-encoding",
    "cache-control",
    "x-accel-buffering",
    "x-request-id",
    "vary",
    "retry-after",
}


def ours(name: str) -> bool:
    return name.startswith(("x-chatfleet-", "access-control-"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_gets_ids_and_traces_and_nothing_about_the_clients_connection(fleet: RawFleet, stream: bool) -> None:
    known = (f"TraceParent: {TRACE}", "tracestate: a=1,b=2", "X-Request-ID: my-id.1")
    others = ("cookie: secret", "x-api-key: secret", "accept: secret", "referer: secret", "forwarded: for=secret")
    with fleet.connect() as connection:
        response = connection.send(hot(ask(stream), *known, *others, *HOP_BY_HOP)).read_response()
        assert response.status == 200 and response.headers["x-request-id"] == "my-id.1"
    call = fleet.upstream.calls[0]
    assert call.headers["traceparent"] == TRACE
    assert call.headers["tracestate"] == "a=1,b=2"
    assert call.headers["x-request-id"] == "my-id.1"
    assert "secret" not in str(call.header_lines)
    assert {name for name in call.headers if not ours(name)} <= TO_WORKER
    assert len(call.headers) == len(call.header_lines), "every header once"
    assert call.headers["host"] == fleet.upstream.url.removeprefix("http://")


def test_what_the_client_calls_hop_by_hop_does_not_cross(fleet: RawFleet) -> None:
    given = (f"traceparent: {TRACE}", "tracestate: a=1")
    with fleet.connect() as connection:
        for value in ("traceparent, TraceState", "keep-alive,TRACEPARENT ,, tracestate"):
            connection.send(hot(ask(), *given, f"connection: {value}"))
            assert connection.read_response().status == 200
            assert not {"traceparent", "tracestate"} & set(fleet.upstream.calls[-1].headers)
        connection.send(hot(ask(), "connection: traceparent", *given, "connection: tracestate"))
        assert connection.read_response().status == 200
        assert not {"traceparent", "tracestate"} & set(fleet.upstream.calls[-1].headers)
        connection.send(hot(ask(), *given))
        assert connection.read_response().status == 200
        assert {"traceparent", "tracestate"} <= set(fleet.upstream.calls[-1].headers)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_without_an_id_gets_one_for_the_worker_and_the_client(fleet: RawFleet, stream: bool) -> None:
    with fleet.connect() as connection:
        ids = set()
        for given in ((), ("x-request-id: with space",), ("x-request-id: " + "x" * 129,), ("x-request-id:",)):
            response = connection.send(hot(ask(stream), *given)).read_response()
            request_id = response.headers["x-request-id"]
            assert fleet.upstream.calls[-1].headers["x-request-id"] == request_id
            assert request_id.isascii() and " " not in request_id and 0 < len(request_id) <= 128
            ids.add(request_id)
    assert len(ids) == 4


def test_every_answer_has_the_id_of_its_request(fleet: RawFleet) -> None:
    with fleet.connect() as connection:
        for number, request in enumerate(
            (
                lambda line: hot(ask(), line),
                lambda line: hot(b"{", line),
                lambda line: hot(ask(model="absent"), line),
                lambda line: head("GET", "/health", line),
                lambda line: head("GET", "/nothing", line),
                lambda line: head("PUT", "/", line),
            )
        ):
            response = connection.send(request(f"x-request-id: id-{number}")).read_response()
            assert response.headers["x-request-id"] == f"id-{number}"


@pytest.mark.parametrize("status", [200, 429])
def test_a_client_gets_nothing_about_the_workers_connection(fleet: RawFleet, status: int) -> None:
    secrets = (
        *HOP_BY_HOP,
        "set-cookie: secret",
        "server: secret",
        "x-powered-by: secret",
        "date: secret",
        "etag: secret",
    )
    whole_answer = whole(json.dumps({"error": {"message": "no"}}).encode(), *secrets, "retry-after: 7", status=status)
    stream = (
        stream_head(*secrets, connection="keep-alive")
        + stream_chunk(event("[DONE]"))
        + b"0\r\nx-secret: secret\r\n\r\n"
    )
    with fleet.connect() as connection:
        for answer in (whole_answer, stream) if status == 200 else (whole_answer,):
            fleet.upstream.script = lambda call, answer=answer: call.send(answer)
            response = connection.send(hot(ask(answer is stream))).read_response()
            assert response.status == status
            assert "secret" not in str(response)
            assert {name for name in response.headers if not ours(name)} <= TO_CLIENT
            assert ("retry-after" in response.headers) == (status == 429)


def test_what_the_worker_calls_hop_by_hop_does_not_cross(fleet: RawFleet) -> None:
    fleet.upstream.script = lambda call: call.send(
        whole(b"{}", "retry-after: 7", "connection: Retry-After", status=429)
    )
    with fleet.connect() as connection:
        response = connection.send(hot(ask())).read_response()
    assert response.status == 429 and "retry-after" not in response.headers


def test_what_a_worker_ignored_is_told(fleet: RawFleet) -> None:
    for stream in (False, True):
        done = stream_head("x-chatfleet-ignored: a, b") + stream_chunk(event("[DONE]")) + stream_chunk(b"")
        answer = done if stream else whole(b"{}", "x-chatfleet-ignored: a, b")
        fleet.upstream.script = lambda call, answer=answer: (call.body, call.send(answer), call.close())
        with fleet.connect() as connection:
            response = connection.send(hot(ask(stream))).read_response()
            assert response.headers["x-chatfleet-ignored"] == "a, b"
