"""The loop that keeps parts running until it is told to stop."""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from chatfleet.supervisor.decisions import (
    Expected,
    Kill,
    Misconfigured,
    Restart,
    Start,
    Supervision,
    Terminate,
)
from chatfleet.supervisor.log import FleetLog
from chatfleet.supervisor.parts import Part
from chatfleet.supervisor.process import PartProcess, ending_words

_REPEAT_S: Final = 0.3
"""Signals this close together are one: `timeout` sends its own to the process and then to the group."""

Watch = Callable[[Supervision, float], float | None]
"""Called after whatever has happened, with the time; returns when to be called again at the latest."""


class Supervisor:
    """Runs the parts, each restarted when it ends, until a signal.

    SIGINT, SIGTERM and SIGHUP stop all in order; a second SIGINT or SIGTERM kills all at once. The loop is a plain
    one in the main thread: no part's trouble can hold it up. No process is left when `run` is over, whatever it
    raises. The signals that stop it are ignored from then on if one came, so that none breaks into what the caller
    has to clean up; else they are as they were.
    """

    def __init__(self, parts: Sequence[Part], log: FleetLog, watch: Watch) -> None:
        self._log = log
        self._watch = watch
        self._watch_at: float | None = None
        self._supervision = Supervision(parts, time.monotonic())
        self._processes: dict[str, PartProcess] = {}
        self._selector = selectors.DefaultSelector()
        self._first_signal_at: float | None = None

    def run(self) -> int:
        """Returns the exit status: 0 after a stop in order, 2 when a part cannot start as it was configured."""
        with self._selector, self._signals():
            try:
                while not self._supervision.done:
                    self._act()
                    self._watch_at = self._watch(self._supervision, time.monotonic())
                    self._wait()
                    self._reap()
            finally:
                for process in self._processes.values():
                    process.close()
        return self._supervision.status

    def _act(self) -> None:
        for action in self._supervision.due(time.monotonic()):
            match action:
                case Start(part):
                    self._start(part)
                case Terminate(part):
                    self._processes[part.name].terminate()
                case Kill(part):
                    self._log.say(f"{part.name} did not stop within {part.grace_s:g} s and is killed.")
                    self._processes[part.name].kill()

    def _start(self, part: Part) -> None:
        try:
            process = PartProcess(part)
        except OSError as exc:
            self._ended(part.name, None, f"could not be started: {exc}")
            return
        self._processes[part.name] = process
        self._selector.register(process.output, selectors.EVENT_READ, lambda: self._read_output(process))
        self._selector.register(process.line, selectors.EVENT_READ, lambda: self._read_line(process))
        if self._supervision.killed:  # by a signal that came meanwhile
            process.kill()

    def _wait(self) -> None:
        """Until something happens or is due, and take in what happened."""
        times = [at for at in (self._supervision.next_due(), self._watch_at) if at is not None]
        timeout_s = max(min(times) - time.monotonic(), 0.0) if times else None
        for key, _ in self._selector.select(timeout_s):
            read: Callable[[], None] = key.data
            read()

    def _read_output(self, process: PartProcess) -> None:
        lines = process.read_lines()
        if lines is None:
            self._selector.unregister(process.output)
        else:
            self._print(process, lines)

    def _print(self, process: PartProcess, lines: Sequence[str]) -> None:
        for line in lines:
            self._log.line(process.part.name, line)

    def _read_line(self, process: PartProcess) -> None:
        try:
            announcements = process.read_announcements()
        except ValueError as exc:
            self._log.say(f"{process.part.name} announced what cannot be read: {exc}.")
            announcements = None
        if announcements is None:
            self._selector.unregister(process.line)
            return
        for announcement in announcements:
            if self._supervision.announced(process.part.name, announcement, time.monotonic()):
                self._log.say(f"{process.part.name} is back.")

    def _reap(self) -> None:
        for name, process in list(self._processes.items()):
            status = process.ended()
            if status is not None:
                self._print(process, process.rest_of_lines())
                for source in (process.output, process.line):
                    if source in self._selector.get_map():
                        self._selector.unregister(source)
                process.close()
                del self._processes[name]
                self._ended(name, status, ending_words(status))

    def _ended(self, name: str, status: int | None, how: str) -> None:
        match self._supervision.ended(name, status, time.monotonic()):
            case Restart(delay_s):
                self._log.say(f"{name} {how}; it starts again in {delay_s:g} s.")
            case Misconfigured():
                self._log.say(f"{name} cannot start: what it says above has to be put right first. All stops.")
            case Expected():
                pass

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop. A stop is begun by it; a second one kills right here, even while it is held up by a
        terminal that does not take its output."""
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        handlers: dict[int, Any] = {
            signal.SIGINT: self._on_signal,
            signal.SIGTERM: self._on_signal,
            signal.SIGCHLD: lambda number, frame: None,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            handlers[signal.SIGHUP] = self._on_signal
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        wakeup_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._woken(wake))
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_fd)
            ending = self._first_signal_at is not None
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if ending and number != signal.SIGCHLD else handler)
            wake.close()
            waker.close()

    def _woken(self, wake: socket.socket) -> None:
        wake.recv(4096)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_signal_at is None:
            self._first_signal_at = now
            self._supervision.stop()
        elif number != signal.SIGHUP and now - self._first_signal_at > _REPEAT_S:  # a shell repeats a hang-up
            self._supervision.kill()
            for process in list(self._processes.values()):
                process.kill()
