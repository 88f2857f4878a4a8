"""The operating system's side of an engine process: start, signals, end."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final

from chatfleet.core.subprocesses import child_environment
from chatfleet.engines.registry import environment_of

logger = logging.getLogger(__name__)

_KILL_PATIENCE_S: Final = 30.0
_SOCKET_BUFFER_BYTES: Final = 256 * 1024


class Child:
    """The operating system's side of one child.

    A thread of its own starts the process and waits for its end: the event loop is never blocked, no loop's child
    watcher is needed, and Linux ties the parent-death signal to the thread that forked, which so lives as long as
    the child does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: str, *, use_guardian: bool) -> None:
        self._loop = loop
        self._started: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self._engine = engine
        self._use_guardian = use_guardian
        self._popen: subprocess.Popen[bytes] | None = None
        self._ours = ExitStack()
        self._childs = ExitStack()
        self._running = False

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen is not None else None

    async def start(self) -> socket.socket:
        """Our end of the socket to the process. Raises OSError or RuntimeError when it cannot be started, for want
        of descriptors or memory, say."""
        ours, childs = socket.socketpair()
        self._ours.callback(ours.close)
        self._childs.callback(childs.close)
        ours.setblocking(False)
        for sock in (ours, childs):  # 8 KB on macOS by default
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
        lifeline_read, lifeline_write = os.pipe()
        self._childs.callback(os.close, lifeline_read)
        self._ours.callback(os.close, lifeline_write)
        owner = threading.Thread(
            target=self._own, args=(childs, lifeline_read), name="chatfleet-engine-process", daemon=True
        )
        owner.start()
        self._running = True
        await asyncio.shield(self._started)
        return ours

    def kill(self) -> None:
        if self._popen is not None:
            self._popen.kill()

    async def end(self, grace_s: float) -> None:
        """Wait up to `grace_s` for the process to end by itself, kill it, and wait for its end."""
        if not self._running:
            return
        await asyncio.wait({self._started})
        if self._started.exception() is None:
            if grace_s > 0:
                await asyncio.wait({self.exited}, timeout=grace_s)
            self.kill()
            await asyncio.wait({self.exited}, timeout=_KILL_PATIENCE_S)
            if not self.exited.done():
                logger.error("the engine process %s was killed and does not end: it hangs in the kernel", self.pid)

    def close(self) -> None:
        """Free what is held for the process, once it has ended and the transport is closed."""
        self._childs.close()
        self._ours.close()

    def _own(self, sock: socket.socket, lifeline_fd: int) -> None:
        # The child inherits the mask, so a Ctrl-C cannot hit it before it ignores that.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            popen = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # the current directory must not shadow a module
                    "-m",
                    "chatfleet.engines.child",
                    self._engine,
                    f"--parent-pid={os.getpid()}",
                    f"--lifeline-fd={lifeline_fd}",
                    *(["--guardian"] if self._use_guardian else []),
                ],
                stdin=sock.fileno(),
                pass_fds=(lifeline_fd,),
                env=environment_of(self._engine) | child_environment(),
            )
        except Exception as exc:
            self._post(self._started.set_exception, exc)
            return
        self._popen = popen
        self._childs.close()  # else the socket would not end with the process
        self._post(self._started.set_result, popen.pid)
        self._post(self.exited.set_result, popen.wait())

    def _post(self, callback: Callable[[Any], None], argument: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, argument)
