"""The wire between gateways and one worker, as a TCP proxy that spoils what comes from the worker."""

import asyncio
import random
import socket
import struct
from collections import Counter
from contextlib import suppress
from typing import Any, cast

from support.chaos_schedule import Kind

_MARK = b"x-chatfleet-recovery: resume\r\n"
_STREAM_END = b"0\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)
_MAX_GARBAGE = 64  # less than any whole answer's body, in whose place garbage could else pass for it


class Wire:
    """Listens on `port` while it is open, for the worker on `worker_port`.

    `spoilt` counts the connections that it has spoilt, by kind; `resumed` the requests to go on with a stream.
    """

    def __init__(self, port: int, worker_port: int) -> None:
        self.port = port
        self.worker_port = worker_port
        self.spoilt: Counter[Kind] = Counter()
        self.resumed = 0
        self.links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Let gateways connect. Idempotent."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Link(self), "127.0.0.1", self.port, backlog=1024)

    def refuse(self) -> None:
        """Refuse connections from now on, as a machine does whose worker is gone. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        self.refuse()
        for link in list(self.links):
            link.reset()

    def spoil(self, kind: Kind, draw: int) -> None:
        """Do this to some connections: at once, or with the next that comes from the worker."""
        rng = random.Random(draw)
        idle = kind is Kind.IDLE_GARBAGE
        fit = [link for link in self.links if link.is_whole and link.is_answering is not idle]
        for link in rng.sample(fit, k=min(len(fit), rng.randint(1, 4))):
            if kind is Kind.RESET:
                link.reset()
            elif idle:
                link.to_gateway(_garbage(rng))
            else:
                link.armed = kind, rng
                continue
            self.spoilt[kind] += 1


class _Link(asyncio.Protocol):
    """One connection: this is the gateway's side of it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._worker = _WorkerSide(self)
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._early = b""
        self.armed: tuple[Kind, random.Random] | None = None
        self.is_answering = False
        self._is_between_frames = True

    @property
    def is_whole(self) -> bool:
        """Whether both sides are there, and nothing bad is about to happen to it already."""
        return self.armed is None and self._worker.transport is not None and self in self._wire.links

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._wire.links.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self._worker, "127.0.0.1", self._wire.worker_port)
        except OSError:
            self._wire.refuse()
            self.reset()
            return
        if self._transport is None:
            self._worker.abort()
        else:
            self._to_worker(self._early)

    def data_received(self, data: bytes) -> None:
        self._wire.resumed += data.count(_MARK)
        self.is_answering = self._is_between_frames = True
        if self._worker.transport is None:
            self._early += data
        else:
            self._to_worker(data)

    def _to_worker(self, data: bytes) -> None:
        if self._worker.transport is not None:
            self._worker.transport.write(data)

    def pause_writing(self) -> None:
        if self._worker.transport is not None:
            self._worker.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._worker.transport is not None:
            self._worker.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._wire.links.discard(self)
        self._worker.abort()

    def from_worker(self, data: bytes) -> None:
        self.is_answering = not data.endswith(_STREAM_END)
        if self.armed is not None and self._is_between_frames:
            kind, rng = self.armed
            self._wire.spoilt[kind] += 1
            self.to_gateway(_garbage(rng) if kind is Kind.GARBAGE else data[: rng.randrange(1, max(2, len(data)))])
            self._worker.abort()
            self.close()
        else:
            self._is_between_frames = data.endswith(b"\r\n")
            self.to_gateway(data)

    def to_gateway(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def close(self) -> None:
        """End it behind all that was sent."""
        self._wire.links.discard(self)
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Drop it with a RST."""
        self._wire.links.discard(self)
        self._worker.abort()
        if self._transport is not None:
            with suppress(OSError):
                sock: Any = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()


class _WorkerSide(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._link.from_worker(data)

    def pause_writing(self) -> None:
        self._link.pause(True)

    def resume_writing(self) -> None:
        self._link.pause(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if exc is None:
            self._link.close()
        else:
            self._link.reset()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _garbage(rng: random.Random) -> bytes:
    """What neither begins a head nor a chunk."""
    return b"\xff" + rng.randbytes(rng.randrange(_MAX_GARBAGE))
