"""The gateway's data plane without sockets: what it would write is kept, what it would read is given by the test."""

import asyncio
import random
import ssl
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
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

WORKER_URL = "http://127.0.0.1:9"


class FakeTransport(asyncio.Transport):
    """`written` is all that was; `buffered` how much of it the other side leaves unread, as the test says."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.buffered = 0
        self.is_reading_paused = False
        self.has_ended_sending = False
        self.was_aborted = False
        self._closing = False

    def write(self, data: Any) -> None:
        assert not self.has_ended_sending
        if not self._closing:
            self.written += data

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def take(self) -> bytes:
        """What was written since the last look."""
        written, self.written = self.written, b""
        return written

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = self.was_aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended_sending = True

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False


class FakeWorker:
    """The gateway's connections to one worker, all of them made already."""

    def __init__(self, upstream: Upstream, count: int) -> None:
        pool = upstream.pool(WORKER_URL)
        self.connections: list[tuple[WorkerConnection, FakeTransport]] = []
        for _ in range(count):
            connection, transport = WorkerConnection(pool), FakeTransport()
            connection.connection_made(transport)
            pool.take_back(connection)
            self.connections.append((connection, transport))

    def asked(self) -> list[tuple[WorkerConnection, bytes]]:
        """The requests that came since the last look, with the connections that they came on."""
        return [(connection, request) for connection, transport in self.connections if (request := transport.take())]

    def answer_all(self, answer: bytes) -> list[bytes]:
        """Give this to all that is asked; the requests."""
        asked = self.asked()
        for connection, _ in asked:
            connection.data_received(answer)
        return [request for _, request in asked]


class FakeGateway:
    """One client's connection to a gateway that serves the model `one`, on the running loop."""

    def __init__(self, protocol: type[GatewayProtocol] = GatewayProtocol, *, keys: Keys | None = None) -> None:
        settings = GatewaySettings()
        view = FleetView()
        info = WorkerInfo(worker_id="one", url=WORKER_URL, models=(ModelInfo(id="one"),))
        snapshot = FleetSnapshot(controller_id="c", epoch=1, version=0, expiry_s=1e6, workers=(info,))
        view.apply("c", snapshot, 0.0)
        upstream = Upstream(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.metrics = GatewayMetrics(
            [e.path for e in ENDPOINTS], upstream_connections=int, workers=dict, circuits=tuple
        )
        plane = DataPlane(
            names=ModelNames(view, {}, None),
            view=view,
            policies=Policies(settings.default_policy(), {}, random.Random(0)),
            upstream=upstream,
            metrics=self.metrics,
            cors=Cors(self._answer, settings),
            keys=keys,
            token=None,
            session_header=b"x-session-id",
            keep_alive_s=15.0,
            recovery_buffer_bytes=1024,
            patience=Patience(first_event_s=1e6, stall_s=1e6, total_s=1e6, retry_s=0, max_replays=0),
            crowd=Crowd(1000),
            access_lines=None,
        )
        config = uvicorn.Config(self._answer, interface="asgi3", lifespan="off", log_config=None, access_log=False)
        config.load()
        self.worker = FakeWorker(upstream, 4)
        self.cold = asyncio.Event()
        """Until it is set, the application answers nothing."""
        self.cold.set()
        self.client = FakeTransport()
        self.protocol = protocol(
            plane,
            config=config,
            server_state=ServerState(),
            app_state={},
            _loop=asyncio.get_running_loop(),
            head_timeout_s=20.0,
            body_timeout_s=60.0,
        )
        self.protocol.connection_made(self.client)
        (self._worker,) = view.workers_of("one")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.cold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"cold"})

    async def settle(self) -> None:
        """Let all that is due on the loop happen."""
        for _ in range(20):
            await asyncio.sleep(0)

    def assert_free(self) -> None:
        """No request holds anything."""
        assert self._worker.in_flight == 0
        assert [numbers.in_flight for numbers in self.metrics.all() if numbers.in_flight] == []
