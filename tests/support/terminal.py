"""The `chatfleet` command at a terminal of its own, typed at and read from."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from support.processes import GUARDED
from support.wire import PATIENCE_S


class Terminal:
    """A command on a pseudo-terminal. `screen` is all that it has shown."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._own, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, str(GUARDED), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})},
        )
        os.close(theirs)
        self.screen = ""
        self._seen = 0

    def enter(self, text: str) -> None:
        os.write(self._own, text.encode())

    def until(self, text: str) -> str:
        """Wait for `text` to be shown; what was shown from the last `until` up to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while (at := self.screen.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline and self._read(), f"no {text!r} in:\n{self.screen[self._seen :]}"
        start, self._seen = self._seen, at + len(text)
        return self.screen[start : self._seen]

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Wait for the command to end; its exit status."""
        while self._read():
            pass
        return self._process.wait(PATIENCE_S)

    def _read(self) -> bool:
        """Read what is shown next; False at the end."""
        readable, _, _ = select.select([self._own], [], [], PATIENCE_S)
        try:
            data = os.read(self._own, 65536) if readable else b""
        except OSError:  # how Linux says that the other side is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._own)
