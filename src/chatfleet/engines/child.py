"""The engine process: one thread that takes commands, steps the backend and reports.

Started by `engines/process.py` as `python -m chatfleet.engines.child ENGINE ...`, with one end of a socket pair
as its standard input. It ends when that socket does, and it is killed when its parent dies, even in the middle
of a native call that holds the GIL.
"""

import argparse
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Final, NoReturn

import msgspec

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import Backend, EngineStats, Fault, GenerateRequest, RequestRefused, TokenDelta
from chatfleet.engines.registry import create_backend
from chatfleet.engines.wire import (
    Add,
    Cancel,
    Command,
    Commands,
    Embed,
    Embedding,
    FrameDecoder,
    Load,
    LoadFailed,
    Ping,
    Pong,
    Ready,
    Recovering,
    Shutdown,
    StepReport,
    ToEngine,
    ToWorker,
    decode_command,
    decode_to_engine,
    encode_frame,
)

logger = logging.getLogger("chatfleet.engine")

EXIT_LOAD_FAILED: Final = 3
EXIT_BACKEND_BROKEN: Final = 70

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_RECEIVE_BYTES: Final = 256 * 1024
_MAX_WAIT_S: Final = 3600.0
_EMBEDDING_POLL_S: Final = 0.02

# The parent holds the pipe's other end; nothing is ever written to it. Being the engine's child, the guardian
# knows by its own parent id that the engine still lives, so it never kills a stranger with a reused pid.
_GUARDIAN: Final = """# chatfleet engine guardian: kills the engine process when the worker is gone
import os, sys
while os.read(0, 1): pass
if os.getppid() == int(sys.argv[1]): os.kill(int(sys.argv[1]), 9)
"""


class WorkerGone(Exception):
    """The socket to the worker has ended."""


class Channel:
    """The socket to the worker, seen from the engine process.

    Sending blocks while the worker's side is full. That cannot deadlock, because the worker reads whatever it is
    doing and never blocks on its own sending; it only makes the engine wait for a worker that cannot keep up.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameDecoder()

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        """What has come, waiting up to `timeout_s` (None: for ever) for the first byte. Raises WorkerGone when the
        worker is gone."""
        if timeout_s is not None:
            timeout_s = min(max(timeout_s, 0.0), _MAX_WAIT_S)
        readable, _, _ = select.select([self._sock], [], [], timeout_s)
        messages: list[ToEngine] = []
        while readable:
            try:
                data = self._sock.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError as exc:
                raise WorkerGone from exc
            if not data:
                raise WorkerGone
            messages += [decode_to_engine(body) for body in self._frames.feed(data)]
            if len(data) < _RECEIVE_BYTES:
                break
        return messages

    def send(self, message: ToWorker) -> None:
        """Raises WorkerGone when the worker is gone."""
        try:
            self._sock.sendall(encode_frame(message))
        except ConnectionError as exc:
            raise WorkerGone from exc


class EngineLoop:
    """Commands in, one step, one report out, until told to stop."""

    def __init__(self, backend: Backend, channel: Channel) -> None:
        self._backend = backend
        self._channel = channel
        self._held: set[int] = set()
        self._embeds: OrderedDict[int, list[int]] = OrderedDict()
        self._deltas: list[TokenDelta] = []
        self._embeddings: list[Embedding] = []
        self._reported_stats = EngineStats()
        self._stopping = False
        self._wait_s: float | None = 0.0

    def run(self) -> None:
        """Returns on Shutdown. Raises WorkerGone when the worker is gone, and what `Backend.recover` raises."""
        self._channel.send(Ready(self._backend.capabilities))
        while not self._stopping:
            messages = self._channel.receive(self._wait_s)
            try:
                self._turn(messages)
            except WorkerGone:
                raise
            except Exception as exc:
                self._fail_all(exc)

    def _turn(self, messages: list[ToEngine]) -> None:
        for message in messages:
            if isinstance(message, Commands):
                for raw in message.commands:
                    self._apply(raw)
        if self._stopping:
            return
        if embedding := bool(self._embeds) and self._backend.embedding_ready():
            self._embed_one()
        wait_s = self._backend.next_step_s()
        if wait_s is not None and wait_s <= 0:
            for delta in self._backend.step():
                self._deltas.append(delta)
                if delta.finish_reason is not None or delta.fault is not None:
                    self._held.discard(delta.request_id)
        stats = self._backend.stats()
        if self._deltas or self._embeddings or stats != self._reported_stats:
            self._report(stats)
        self._wait_s = self._backend.next_step_s()
        if self._embeds:
            poll_s = 0.0 if embedding else _EMBEDDING_POLL_S
            self._wait_s = poll_s if self._wait_s is None else min(poll_s, self._wait_s)

    def _report(self, stats: EngineStats) -> None:
        report = StepReport(self._deltas, self._embeddings, stats)
        self._deltas, self._embeddings, self._reported_stats = [], [], stats
        self._channel.send(report)

    def _apply(self, raw: msgspec.Raw) -> None:
        try:
            command: Command = decode_command(raw)
        except msgspec.ValidationError as exc:
            self._refuse_malformed(raw, exc)
            return
        match command:
            case Add(request):
                self._add(request)
            case Cancel(request_id):
                self._embeds.pop(request_id, None)
                if request_id in self._held:
                    self._held.discard(request_id)
                    self._backend.cancel(request_id)
            case Embed(request_id, prompt_token_ids):
                self._embeds[request_id] = prompt_token_ids
            case Ping():
                self._channel.send(Pong())
            case Shutdown():
                self._stopping = True

    def _add(self, request: GenerateRequest) -> None:
        try:
            self._backend.add(request)
        except RequestRefused as exc:
            self._deltas.append(TokenDelta(request_id=request.request_id, fault=exc.fault))
        except Exception as exc:
            logger.exception("adding request %d failed", request.request_id)
            with suppress(Exception):
                self._backend.cancel(request.request_id)
            self._deltas.append(TokenDelta(request_id=request.request_id, fault=_fault_from(exc)))
        else:
            self._held.add(request.request_id)

    def _embed_one(self) -> None:
        """One input only, so that the generations beside it wait for no more than that."""
        request_id, prompt_token_ids = self._embeds.popitem(last=False)
        try:
            embedding = Embedding(request_id, vector=self._backend.embed(prompt_token_ids))
        except RequestRefused as exc:
            embedding = Embedding(request_id, fault=exc.fault)
        except Exception as exc:
            logger.exception("embedding %d failed", request_id)
            embedding = Embedding(request_id, fault=_fault_from(exc))
        self._embeddings.append(embedding)

    def _refuse_malformed(self, raw: msgspec.Raw, exc: msgspec.ValidationError) -> None:
        """A request of the wrong types fails alone."""
        logger.error("malformed command: %s", exc)
        fault = Fault(message=f"The engine was sent a malformed request: {exc}", kind="engine")
        match msgspec.msgpack.decode(raw):
            case ["add", {"request_id": int(request_id)}]:
                self._deltas.append(TokenDelta(request_id=request_id, fault=fault))
            case ["embed", int(request_id), *_]:
                self._embeddings.append(Embedding(request_id, fault=fault))

    def _fail_all(self, exc: Exception) -> None:
        logger.error("the engine failed with %d requests in it", len(self._held), exc_info=exc)
        fault = _fault_from(exc)
        self._deltas += [TokenDelta(request_id=request_id, fault=fault) for request_id in sorted(self._held)]
        self._held.clear()
        self._report(EngineStats())
        self._channel.send(Recovering())
        self._backend.recover()
        self._wait_s = 0.0
        self._channel.send(Ready(self._backend.capabilities))


def _fault_from(exc: Exception) -> Fault:
    """The client learns the kind of error; its text, which may tell of the machine, is in the log."""
    return Fault(
        message=f"The engine failed ({type(exc).__name__}) while this request was running; "
        "the worker's log has the details."
    )


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="chatfleet.engines.child")
    parser.add_argument("engine")
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--guardian", action="store_true")
    arguments = parser.parse_args()
    # A process group gets these together (Ctrl-C, systemd); the worker drains first, then ends the engine.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    guardian = _die_with_parent(arguments.parent_pid, arguments.lifeline_fd, force_guardian=arguments.guardian)
    with suppress(Exception):  # standard error may be closed
        faulthandler.enable()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s engine[{arguments.engine}:%(process)d] %(message)s",
    )
    if guardian is not None:
        logger.debug("guardian process: %d", guardian.pid)
    try:
        with _take_stdin_socket() as sock:
            status = _serve(Channel(sock))
    except WorkerGone:
        status = 0
    except Exception:
        logger.exception("the engine process ends")
        status = EXIT_BACKEND_BROKEN
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # native libraries may hang or crash in interpreter shutdown


def _serve(channel: Channel) -> int:
    while not (messages := channel.receive(None)):
        pass
    load = messages[0]  # the worker sends nothing more before Ready
    if not isinstance(load, Load):
        raise TypeError(f"expected Load, got {type(load).__name__}")
    try:
        backend = create_backend(load.backend, load.config)
    except ConfigurationError as exc:
        channel.send(LoadFailed(str(exc), "configuration"))
        return EXIT_LOAD_FAILED
    except Exception as exc:
        logger.exception("loading failed")
        channel.send(LoadFailed(f"{type(exc).__name__}: {exc}", "engine"))
        return EXIT_LOAD_FAILED
    EngineLoop(backend, channel).run()
    with suppress(Exception):
        backend.close()
    return 0


def _take_stdin_socket() -> socket.socket:
    """Move the socket off standard input, so that no process a backend might start inherits it."""
    sock = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    return sock


def _die_with_parent(parent_pid: int, lifeline_fd: int, *, force_guardian: bool) -> subprocess.Popen[bytes] | None:
    """Have this process killed when the worker dies, however busy it is by then: by the kernel on Linux, elsewhere
    by a guardian process, which is returned."""
    guardian = None
    if force_guardian or not _set_parent_death_signal():
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARDIAN, str(os.getpid())],
            stdin=lifeline_fd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    os.close(lifeline_fd)
    if os.getppid() != parent_pid:  # it died before the signal was asked for
        os._exit(0)
    return guardian


def _set_parent_death_signal() -> bool:
    if sys.platform != "linux":
        return False
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    name = ctypes.create_string_buffer(b"chatfleet-eng")  # at most 15 characters
    prctl(_PR_SET_NAME, ctypes.addressof(name), 0, 0, 0)
    return bool(prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0)


if __name__ == "__main__":
    main()
