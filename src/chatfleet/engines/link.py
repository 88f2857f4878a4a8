"""The worker's end of the socket to an engine process: frames out, frames in, signs of life."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

import msgspec

from chatfleet.core.errors import ServingError
from chatfleet.engines.base import Capabilities, EngineStats
from chatfleet.engines.stream import EmbedCall, Inbox
from chatfleet.engines.wire import (
    Cancel,
    Command,
    FrameDecoder,
    FrameError,
    Load,
    LoadFailed,
    Ping,
    Ready,
    Recovering,
    StepReport,
    decode_to_worker,
    encode_command,
    encode_commands,
    encode_frame,
)

logger = logging.getLogger(__name__)

_STALL_TICKS: Final = 10


class Link(asyncio.Protocol):
    """The worker's end of the socket to one child, and the requests that are in that child.

    It never stops reading, so the child's sends end. What it writes is bounded by what the worker admits within
    the stall time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ready_change: Callable[["Link"], None]) -> None:
        self.loop = loop
        self.loaded: asyncio.Future[Capabilities | LoadFailed] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.ready = False
        self.stalled_s: float | None = None
        """For how long the child had been silent when it was given up."""
        self.stats = EngineStats()
        self.inboxes: dict[int, Inbox] = {}
        self.embeds: dict[int, tuple[EmbedCall, int]] = {}
        self._on_ready_change = on_ready_change
        self._frames = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._heard = True
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._on_stall: Callable[[], None] | None = None
        self._tick_s = 0.0
        self._load_timeout_s = 0.0

    # --- the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            for body in self._frames.feed(data):
                self._receive(body)
        except (FrameError, msgspec.DecodeError):
            logger.exception("the engine process sent something that is no message")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ready = False
        self._transport = None
        self._outgoing.clear()
        self._stop_timer()
        if not self.lost.done():
            self.lost.set_result(None)

    def abort(self) -> bool:
        """Close the socket now. False when it is closed already, or was never opened."""
        if self._transport is None:
            return False
        self._transport.abort()
        return True

    def load(self, message: Load) -> None:
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    def send(self, command: Command) -> None:
        self.send_encoded(encode_command(command))

    def send_encoded(self, command: bytes) -> None:
        if self._transport is None:
            return
        if not self._outgoing:
            self.loop.call_soon(self._flush)
        self._outgoing.append(command)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(encode_commands(self._outgoing))
        self._outgoing.clear()

    def _receive(self, body: memoryview) -> None:
        message = decode_to_worker(body)
        if isinstance(message, StepReport):
            self.stats = message.stats
            for delta in message.deltas:
                inbox = self.inboxes.get(delta.request_id)
                if inbox is not None:
                    inbox.put(delta)
                    if inbox.ended:
                        self.inboxes.pop(delta.request_id, None)
            for embedding in message.embeddings:
                call, index = self.embeds.pop(embedding.request_id, (None, 0))
                if call is not None:
                    call.put(index, embedding)
        elif isinstance(message, Ready):
            if not self.loaded.done():
                self.loaded.set_result(message.capabilities)
            else:
                self._recovered()
        elif isinstance(message, Recovering):
            self._recovering()
        elif isinstance(message, LoadFailed) and not self.loaded.done():
            self.loaded.set_result(message)

    # --- requests ---

    def cancel(self, request_id: int) -> None:
        if self.inboxes.pop(request_id, None) is not None or self.embeds.pop(request_id, None) is not None:
            self.send(Cancel(request_id))

    def fail_all(self, make_error: Callable[[], ServingError]) -> None:
        inboxes, self.inboxes = self.inboxes, {}
        embeds, self.embeds = self.embeds, {}
        for inbox in inboxes.values():
            inbox.fail(make_error())
        for call, _ in embeds.values():
            call.fail(make_error())

    # --- signs of life ---

    def watch(self, *, stall_timeout_s: float, load_timeout_s: float, on_stall: Callable[[], None]) -> None:
        """From now on, call `on_stall` once when the child has been silent for `stall_timeout_s` after a ping.

        Silence is counted in ticks of our own timer and not in seconds: when this process itself was stopped or
        blocked, the child is not to blame.
        """
        self._tick_s = stall_timeout_s / _STALL_TICKS
        self._load_timeout_s = load_timeout_s
        self._on_stall = on_stall
        self.ready = self._transport is not None
        self._silent_ticks = 0
        self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        if self._heard:
            self._heard = False
            self._silent_ticks = 0
        else:
            self._silent_ticks += 1
            if self._silent_ticks == 1:
                self.send(Ping())
            elif self._silent_ticks > _STALL_TICKS:
                self._stall(self._tick_s * _STALL_TICKS)
                return
        self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _stall(self, silent_s: float) -> None:
        self.stalled_s = silent_s
        self.ready = False
        self._stop_timer()
        if self._on_stall is not None:
            self._on_stall()

    def _recovering(self) -> None:
        """The backend is rebuilt inside its process: as long as a load, and as silent."""
        self._stop_timer()
        self._timer = self.loop.call_later(self._load_timeout_s, self._stall, self._load_timeout_s)
        self.ready = False
        self._on_ready_change(self)

    def _recovered(self) -> None:
        if self.stalled_s is not None or self._on_stall is None:
            return
        self._stop_timer()
        self._silent_ticks = 0
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        self.ready = True
        self._on_ready_change(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
