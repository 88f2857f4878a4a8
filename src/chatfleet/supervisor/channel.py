"""The line between a part and its supervisor: a socket pair that says what is served, and who still lives.

The part writes an announcement as one line of JSON; nothing is ever written to it. The end of the socket is the end of
the supervisor, however that came about.
"""

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

PARENT_FD_VARIABLE: Final = "CHATFLEET_PARENT_FD"
GRACE_VARIABLE: Final = "CHATFLEET_PARENT_GRACE_S"

Announce = Callable[[str, tuple[str, ...]], None]


class Announcement(msgspec.Struct, frozen=True):
    """Where a part is reached, and the names of the models that it serves now."""

    url: str
    models: tuple[str, ...] = ()


class AnnouncementReader:
    """Announcements out of the bytes of a socket."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Announcement]:
        """Raises ValueError on what is no announcement."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [msgspec.json.decode(line, type=Announcement) for line in lines]


def announce_to_parent() -> Announce | None:
    """Tie this process to the supervisor that started it, where one did.

    Returns what it calls with its URL and model names once it serves and whenever they change, which never blocks;
    None when it was started alone, and so speaks to a person. When the supervisor is gone, however that happened, this
    process gets SIGTERM, and when its time for stopping is over it ends, even if its event loop is stuck. Call it once,
    early.
    """
    given = os.environ.pop(PARENT_FD_VARIABLE, None)
    if given is None:
        return None
    fd, grace_s = int(given), float(os.environ.pop(GRACE_VARIABLE))
    os.set_inheritable(fd, False)  # else a child of ours would keep it open
    line = socket.socket(fileno=fd)
    line.setblocking(True)
    pending: queue.SimpleQueue[Announcement] = queue.SimpleQueue()
    for target, arguments in ((_end_with, (line, grace_s)), (_write, (line, pending))):
        threading.Thread(target=target, args=arguments, name="chatfleet-parent", daemon=True).start()
    return lambda url, models: pending.put(Announcement(url, models))


def _end_with(line: socket.socket, grace_s: float) -> None:
    with suppress(OSError):
        while line.recv(4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)


def _write(line: socket.socket, pending: "queue.SimpleQueue[Announcement]") -> None:
    with suppress(OSError):  # the other thread sees to it
        while True:
            line.sendall(msgspec.json.encode(pending.get()) + b"\n")
