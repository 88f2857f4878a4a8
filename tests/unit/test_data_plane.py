"""The data plane without sockets: a client's transport and a worker's are lists of what was written."""

import asyncio
import json
import random
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from chatfleet.core.fleet import FleetSnapshot, ModelInfo, WorkerInfo
from chatfleet.dispatch.attempts import Crowd, Patience
from chatfleet.dispatch.connection import WorkerConnection
from chatfleet.dispatch.policies import Policies
from chatfleet.dispatch.upstream import Upstream
from chatfleet.dispatch.view import FleetView
from chatfleet.gateway.cors import Cors
from chatfleet.gateway.data_plane.plane import DataPlane
from chatfleet.gateway.data_plane.protocol import GatewayProtocol
from chatfleet.gateway.endpoints import ENDPOINTS
from chatfleet.gateway.models import ModelNames
from chatfleet.gateway.settings import GatewaySettings
from chatfleet.http.trust import Keys
from chatfleet.observability.gateway import GatewayMetrics

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"id": "a"}'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class FakeTransport:
    def __init__(self) -> None:
        self.written = b""
        self.waiting_bytes = 0
        self.is_reading = True
        self.is_ended = False

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_ended

    def close(self) -> None:
        self.is_ended = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def taken(self) -> bytes:
        written, self.written = self.written, b""
        return written


class Plane:
    """A gateway that knows one worker of the model `m`, with one connection to it."""

    def __init__(self, *, keys: Keys | None = None, kind: str = "openai") -> None:
        settings = GatewaySettings()
        self.view = FleetView()
        self.add_worker("w", "m", kind)
        self.metrics = GatewayMetrics(
            [endpoint.path for endpoint in ENDPOINTS], upstream_connections=lambda: 0, workers=dict, circuits=tuple
        )
        self.upstream = Upstream(ssl.create_default_context())
        self.plane = DataPlane(
            names=ModelNames(self.view, {}, None),
            view=self.view,
            policies=Policies("power_of_two", {}, random.Random(0)),
            upstream=self.upstream,
            metrics=self.metrics,
            cors=Cors(_no_app, settings),
            keys=keys,
            token=None,
            session_header=b"x-session-id",
            keep_alive_s=15.0,
            recovery_buffer_bytes=1024,
            patience=Patience(first_event_s=1e6, stall_s=1e6, total_s=1e6, retry_s=0, max_replays=0),
            crowd=Crowd(1000),
            access_lines=None,
        )
        self.worker = FakeTransport()
        self.connection = self.connect_worker(self.worker)

    def add_worker(self, worker_id: str, model: str, kind: str = "openai") -> None:
        info = WorkerInfo.model_validate(
            {"worker_id": worker_id, "url": f"http://{worker_id}", "kind": kind, "models": [ModelInfo(id=model)]}
        )
        snapshot = FleetSnapshot(controller_id=worker_id, epoch=1, version=0, expiry_s=1e6, workers=(info,))
        self.view.apply(worker_id, snapshot, 0.0)

    def connect_worker(self, transport: FakeTransport) -> WorkerConnection:
        pool = self.upstream.pool("http://w")
        connection = WorkerConnection(pool)
        connection.connection_made(transport)  # type: ignore[arg-type]
        pool.take_back(connection)
        return connection

    def client(self) -> tuple[GatewayProtocol, FakeTransport]:
        config = uvicorn.Config(_no_app, lifespan="off", log_config=None)
        config.load()
        loop = asyncio.get_running_loop()
        protocol = GatewayProtocol(self.plane, config=config, server_state=ServerState(), app_state={}, _loop=loop)
        transport = FakeTransport()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        return protocol, transport

    def in_flight(self) -> int:
        return sum(numbers.in_flight for numbers in self.metrics.all())


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    pass


def request(body: object, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: a", "content-type: application/json", *headers)
    return "\r\n".join((*lines, f"content-length: {len(content)}")).encode() + b"\r\n\r\n" + content


ASK = {"model": "m", "messages": []}


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_request_goes_to_the_worker_and_its_answer_comes_back() -> None:
    plane = Plane()
    protocol, client = plane.client()
    for length in (1, 20, 3):  # the second and the third have a head that is known, with other digits
        protocol.data_received(request({**ASK, "user": "u" * length}))
        assert plane.worker.taken().endswith(json.dumps({**ASK, "user": "u" * length}).encode())
        assert plane.in_flight() == 1
        plane.connection.data_received(ANSWER)
        answer = client.taken()
        assert status_of(answer) == 200 and answer.endswith(b'{"id": "a"}')
        assert plane.in_flight() == 0


async def test_a_known_head_is_only_the_one_with_its_key() -> None:
    plane = Plane(keys=Keys({"right": 0}))
    protocol, client = plane.client()
    for key in ("right", "right", "wrong", "right", "wrong"):
        protocol.data_received(request(ASK, f"authorization: Bearer {key}"))
        if key == "right":
            assert plane.worker.taken()
            plane.connection.data_received(ANSWER)
        assert status_of(client.taken()) == (200 if key == "right" else 401)
    assert not plane.worker.written


async def test_a_client_that_leaves_gives_back_the_slot() -> None:
    plane = Plane()
    protocol, _ = plane.client()
    protocol.data_received(request({**ASK, "stream": True}))
    plane.connection.data_received(STREAM)
    protocol.connection_lost(None)
    (worker,) = plane.view.workers_of("m")
    assert (plane.in_flight(), worker.in_flight, plane.worker.is_ended) == (0, 0, True)


async def test_a_connection_that_is_idle_again_is_not_paused_by_its_last_answer() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.data_received(request(ASK))
    write = client.write

    def write_too_much(data: bytes) -> None:
        write(data)
        protocol.pause_writing()

    client.write = write_too_much  # type: ignore[method-assign]
    plane.connection.data_received(ANSWER)
    assert plane.worker.is_reading


async def test_what_a_client_does_not_read_lets_the_next_worker_wait() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.pause_writing()
    protocol.data_received(request({**ASK, "stream": True}))
    assert not plane.worker.written, "nothing is asked before the client has read"
    protocol.resume_writing()
    await asyncio.sleep(0)
    assert plane.worker.taken()
    plane.connection.data_received(STREAM + chunk(b"data: {}\n\n"))
    protocol.pause_writing()
    assert not plane.worker.is_reading
    protocol.resume_writing()
    assert plane.worker.is_reading and client.written.endswith(b"data: {}\n\n\r\n")


async def test_thousands_of_pipelined_refusals_behind_a_slow_answer_are_given_in_order() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.data_received(request(ASK) + request(b"[]") * 3000)
    plane.connection.data_received(ANSWER)
    for _ in range(3100):
        await asyncio.sleep(0)
    statuses = [int(part[:3]) for part in client.written.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200] + [400] * 3000


async def test_a_body_in_chunks_of_a_byte_is_kept_as_its_bytes() -> None:
    plane = Plane()
    protocol, _ = plane.client()
    body = json.dumps({**ASK, "user": "u" * 5000}).encode()
    head = request(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    protocol.data_received(head + b"".join(b"1\r\n%b\r\n" % bytes([byte]) for byte in body) + b"0\r\n\r\n")
    assert plane.worker.taken().endswith(body)


async def test_a_name_that_is_empty_means_what_it_means_now() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.data_received(request({**ASK, "model": ""}))
    plane.connection.data_received(ANSWER)
    assert status_of(client.taken()) == 200
    plane.add_worker("x", "other")
    protocol.data_received(request({**ASK, "model": ""}))
    assert status_of(client.taken()) == 400


async def test_many_long_names_of_ignored_fields_are_cut() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.data_received(request({**ASK, **{f"{number}{'x' * 100}": 1 for number in range(1000)}}))
    plane.connection.data_received(ANSWER)
    head = client.taken().partition(b"\r\n\r\n")[0]
    (ignored,) = (line for line in head.split(b"\r\n") if line.startswith(b"x-chatfleet-ignored: 0xxx"))
    *names, last = ignored.partition(b": ")[2].split(b", ")
    assert len(head) < 2000 and last == b"..." and {len(name.lstrip(b"0123456789")) for name in names} == {100}


@pytest.mark.parametrize(
    "more", [b'"x": "\\u0041", "n": ' + b"1" * 5000, b'"x": "\\u0041", "n": 1e999', b'"\\u006dodels": 1']
)
async def test_what_might_repeat_a_field_and_does_not_is_fine(more: bytes) -> None:
    plane = Plane(kind="chatfleet")
    protocol, _ = plane.client()
    protocol.data_received(request(b'{"model": "m", ' + more + b"}"))
    assert plane.worker.taken().endswith(more + b"}")


async def test_comments_are_passed_on_and_are_no_tokens() -> None:
    plane = Plane()
    protocol, client = plane.client()
    protocol.data_received(request({**ASK, "stream": True}))
    comment, usage = b": wait\n\n", b'data: {"usage": {"prompt_tokens": 2, "completion_tokens": 3}}\n\n'
    done = b"data: [DONE]\n\n"
    for event in (comment, usage, comment, done):
        plane.connection.data_received((STREAM if event is comment and not client.written else b"") + chunk(event))
    plane.connection.data_received(b"0\r\n\r\n")
    (numbers,) = [numbers for numbers in plane.metrics.all() if numbers.model_name == "m"]
    assert (numbers.prompt_tokens, numbers.completion_tokens) == (2, 3)
    assert (numbers.first_token.count, numbers.gap.count) == (1, 1)
    assert client.written.count(comment) == 2


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "cut", [lambda data: [data], lambda data: [data[i : i + 1] for i in range(len(data))]], ids=["whole", "bytes"]
)
async def test_an_answer_comes_to_the_same_however_it_is_cut(cut: Callable[[bytes], list[bytes]]) -> None:
    plane = Plane()
    protocol, client = plane.client()
    for _ in range(3):
        protocol.data_received(request(ASK))
        for piece in cut(ANSWER):
            plane.connection.data_received(piece)
        answer = client.taken()
        assert status_of(answer) == 200 and answer.endswith(b'{"id": "a"}')
