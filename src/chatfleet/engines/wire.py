"""What crosses between the worker and its engine process: messages, and frames of 4-byte length + msgpack.

The worker sends one `Load`, then `Commands`: everything asked for in one tick of its event loop leaves as
one frame. The engine process answers `Ready` or `LoadFailed`, then one `StepReport` per step.
"""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from chatfleet.engines.base import Capabilities, EngineConfig, EngineStats, Fault, GenerateRequest, TokenDelta

HEADER_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 64 * 2**20
"""The largest frame body. Batches are split to fit; one message over it is refused by its sender."""


class FrameError(Exception):
    """The bytes are no frame of ours, or a single message exceeds the bound."""


# --- worker to engine process ---


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """The first message: which backend to make ("module:attribute"), and from what."""

    backend: str
    config: EngineConfig


class Add(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    request: GenerateRequest


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Drop a generation or an embedding. Unknown ids are no error."""

    request_id: int


class Embed(msgspec.Struct, frozen=True, array_like=True, tag="embed"):
    request_id: int
    prompt_token_ids: list[int]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Asks for a sign of life: any frame will do, a Pong comes at once when the engine is between steps."""


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag="shutdown"):
    pass


Command = Add | Cancel | Embed | Ping | Shutdown


class Commands(msgspec.Struct, frozen=True, array_like=True, tag="commands"):
    """Commands in order, each still encoded, so that one bad command spoils no other."""

    commands: list[msgspec.Raw]


# --- engine process to worker ---


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The model is loaded, or usable again after `Recovering`."""

    capabilities: Capabilities


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag="load_failed"):
    """`configuration`: the message says what to change. `engine`: the backend failed in its own words."""

    message: str
    kind: Literal["configuration", "engine"]


class Recovering(msgspec.Struct, frozen=True, array_like=True, tag="recovering"):
    """A step failed, its requests have had their faults, and the backend is being rebuilt. `Ready` follows."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    pass


class Embedding(msgspec.Struct, frozen=True, array_like=True):
    """One input's vector (little-endian float32 values), or why there is none."""

    request_id: int
    vector: bytes | None = None
    fault: Fault | None = None


class StepReport(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """All that one turn of the engine loop brought."""

    deltas: list[TokenDelta]
    embeddings: list[Embedding]
    stats: EngineStats


ToEngine = Load | Commands
ToWorker = Ready | LoadFailed | Recovering | Pong | StepReport

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_worker_decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

decode_command = _command_decoder.decode
decode_to_engine = _to_engine_decoder.decode
decode_to_worker = _to_worker_decoder.decode


def encode_command(command: Command) -> bytes:
    """One command, to go into `encode_commands`. Raises FrameError when it alone exceeds a frame, or when
    an integer in it exceeds 64 bits."""
    try:
        encoded = _encoder.encode(command)
    except OverflowError as exc:
        raise FrameError(str(exc)) from exc
    if len(encoded) > MAX_FRAME_BYTES // 2:
        raise FrameError(f"{len(encoded)} bytes exceed the bound of {MAX_FRAME_BYTES // 2}")
    return encoded


def encode_commands(commands: Sequence[bytes]) -> bytes:
    """Encoded commands as one frame, or as few as the bound allows."""
    return _frames(Commands([msgspec.Raw(command) for command in commands]))


def encode_frame(message: ToEngine | ToWorker) -> bytes:
    """One frame; several for a StepReport or Commands over the bound. Raises FrameError when it cannot be cut."""
    return _frames(message)


def _frames(message: ToEngine | ToWorker) -> bytes:
    frame = bytearray(HEADER_BYTES)
    _encoder.encode_into(message, frame, HEADER_BYTES)
    size = len(frame) - HEADER_BYTES
    if size <= MAX_FRAME_BYTES:
        frame[:HEADER_BYTES] = size.to_bytes(HEADER_BYTES, "big")
        return bytes(frame)
    match message:
        case Commands(commands) if len(commands) > 1:
            half = len(commands) // 2
            return _frames(Commands(commands[:half])) + _frames(Commands(commands[half:]))
        case StepReport(deltas, embeddings, stats) if len(deltas) > 1:
            half = len(deltas) // 2
            first = StepReport(deltas[:half], [], stats)
            return _frames(first) + _frames(StepReport(deltas[half:], embeddings, stats))
        case StepReport([delta], embeddings, stats):
            fault = Fault(message="The answer's log probabilities are too large to carry; ask for fewer.")
            return _frames(StepReport([TokenDelta(request_id=delta.request_id, fault=fault)], embeddings, stats))
    raise FrameError(f"{size} bytes exceed the bound of {MAX_FRAME_BYTES}")


class FrameDecoder:
    """Cuts a byte stream into frame bodies, however it was split on its way."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._needed = HEADER_BYTES

    def feed(self, data: bytes) -> list[memoryview]:
        """The bodies that `data` completes, in order. Raises FrameError on a length over the bound."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return []
            data, self._buffer = bytes(self._buffer), bytearray()
        bodies: list[memoryview] = []
        view, start, size = memoryview(data), 0, len(data)
        while True:
            self._needed = HEADER_BYTES
            if size - start >= HEADER_BYTES:
                length = int.from_bytes(view[start : start + HEADER_BYTES], "big")
                if length > self._max_frame_bytes:
                    raise FrameError(f"a frame of {length} bytes exceeds the bound of {self._max_frame_bytes}")
                self._needed += length
            if size - start < self._needed:
                self._buffer += view[start:]
                return bodies
            bodies.append(view[start + HEADER_BYTES : start + self._needed])
            start += self._needed
