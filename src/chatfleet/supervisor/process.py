"""The operating system's side of a part: its start, what it says, its end."""

import os
import signal
import socket
import subprocess
from contextlib import suppress

from chatfleet.core.settings import ENV_PREFIX
from chatfleet.core.subprocesses import child_environment
from chatfleet.supervisor.channel import GRACE_VARIABLE, PARENT_FD_VARIABLE, Announcement, AnnouncementReader
from chatfleet.supervisor.log import LineSplitter
from chatfleet.supervisor.parts import Part

_READ_BYTES = 64 * 1024


class PartProcess:
    """A running part, in a session of its own: Ctrl-C at the terminal reaches the supervisor only.

    `output` and `line` are for a selector; what they have to say is read without blocking. Raises OSError when the
    process cannot be started.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self._lines = LineSplitter()
        self._announcements = AnnouncementReader()
        self.line, theirs = socket.socketpair()
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    part.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    start_new_session=True,
                    pass_fds=(theirs.fileno(), *part.fds),
                    env=part_environment(part, theirs.fileno()),
                )
            except BaseException:
                self.line.close()
                raise
        assert self._popen.stdout is not None
        self.output = self._popen.stdout
        self.line.setblocking(False)
        os.set_blocking(self.output.fileno(), False)

    def read_lines(self) -> list[str] | None:
        """What it has printed since; None at the end."""
        data = self.output.read(_READ_BYTES)
        if data is None:
            return []
        return self._lines.feed(data) if data else None

    def rest_of_lines(self) -> list[str]:
        """What is left in the pipe after its end, whoever may still hold that open."""
        lines: list[str] = []
        while more := self.output.read(_READ_BYTES):
            lines += self._lines.feed(more)
        return lines + self._lines.end()

    def read_announcements(self) -> list[Announcement] | None:
        """What it has announced since; None at the end. Raises ValueError on anything else."""
        try:
            data = self.line.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        return self._announcements.feed(data) if data else None

    def ended(self) -> int | None:
        """Its exit status once it has ended, minus the signal's number where one ended it. What it has started and
        left behind is killed then."""
        status = self._popen.poll()
        if status is not None:
            self._signal_group()
        return status

    def terminate(self) -> None:
        self._popen.terminate()

    def kill(self) -> None:
        """Kill it, and what it has started. Does nothing when it has ended."""
        if self._popen.returncode is None:
            self._signal_group()

    def close(self) -> None:
        """Kill it if it runs, wait for its end, let go of its descriptors."""
        self.kill()
        self._popen.wait()
        self.output.close()
        self.line.close()

    def _signal_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in it
            os.killpg(self._popen.pid, signal.SIGKILL)


def part_environment(part: Part, parent_fd: int) -> dict[str, str]:
    """Ours without our own settings, which the part is told only where they are meant for it."""
    inherited = {name: value for name, value in child_environment().items() if not name.upper().startswith(ENV_PREFIX)}
    tied = {PARENT_FD_VARIABLE: str(parent_fd), GRACE_VARIABLE: str(part.grace_s)}
    return {**inherited, **part.environment, **tied}


def ending_words(status: int) -> str:
    """How a process ended, as the end of "The gateway ..."."""
    if status >= 0:
        return f"ended (exit status {status})"
    if -status == signal.SIGKILL:
        return "was ended by SIGKILL (which the system sends when memory runs out)"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
