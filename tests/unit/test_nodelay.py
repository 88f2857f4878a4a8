"""Small writes leave at once, on the way in and on the way out."""

import asyncio
import socket
import ssl

import pytest
import uvloop
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from chatfleet.dispatch.upstream import Upstream
from chatfleet.http.server import listen, make_server


def is_undelayed(transport: asyncio.BaseTransport) -> bool:
    descriptor = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=socket.dup(descriptor)) as copy:
        return copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


class Answer:
    """What a worker answers."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = asyncio.Event()

    def answer_began(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert status == 200

    def answer_data(self, data: bytes) -> None:
        self.body += data

    def answer_ended(self, *, is_framed: bool) -> None:
        self.ended.set()

    def answer_failed(self, error: Exception) -> None:
        raise error

    def went_stale(self) -> None:
        raise AssertionError("it is new")


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_tcp_nodelay_is_set_on_both_sides(loop_factory: object) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        transport = receive.__self__.transport  # type: ignore[attr-defined]
        await PlainTextResponse(str(is_undelayed(transport)))(scope, receive, send)

    async def exchange() -> tuple[bytes, bool]:
        listener = listen("127.0.0.1", 0)
        server = make_server(app)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        connection = (
            await Upstream(ssl.create_default_context()).pool(f"http://127.0.0.1:{listener.getsockname()[1]}").connect()
        )
        answer = Answer()
        connection.send([b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"], answer)
        await answer.ended.wait()
        assert connection._transport is not None
        outgoing = is_undelayed(connection._transport)
        connection.abandon()
        server.stop()
        await serving
        return answer.body, outgoing

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        assert runner.run(exchange()) == (b"True", True)
