"""Small writes leave at once, on the way in and on the way out."""

import asyncio
import socket

import pytest
import uvloop
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from chatfleet.dispatch.upstream import AiohttpUpstream
from chatfleet.http.server import listen, make_server


def is_undelayed(transport: asyncio.BaseTransport) -> bool:
    descriptor = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=socket.dup(descriptor)) as copy:
        return copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_tcp_nodelay_is_set_on_both_sides(loop_factory: object) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        transport = receive.__self__.transport  # type: ignore[attr-defined]
        await PlainTextResponse(str(is_undelayed(transport)))(scope, receive, send)

    async def exchange() -> tuple[bytes, bool]:
        listener = listen("127.0.0.1", 0)
        server = make_server(app)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        outgoing: list[bool] = []
        async with AiohttpUpstream.new_session() as session:
            response = await AiohttpUpstream(session).post(url, b"{}", {})
            answer = await response.read_all()
            (connections,) = session.connector._conns.values()  # type: ignore[union-attr]
            outgoing = [is_undelayed(handler.transport) for handler, _ in connections]  # type: ignore[arg-type]
        server.stop()
        await serving
        return answer, all(outgoing) and bool(outgoing)

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        assert runner.run(exchange()) == (b"True", True)
