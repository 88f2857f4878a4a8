"""Commands that prepare a model and take a while: run with progress, and never outliving us."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

logger = logging.getLogger(__name__)

_REMIND_S: Final = 15.0
_POLL_S: Final = 0.2
_TELLING: Final = re.compile(r"(?:[\w.]*(?:Error|Exception)\b|ERROR):")

_KEEPER: Final = """
import os, signal, subprocess, sys, threading
def kill_with_parent():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=kill_with_parent, daemon=True).start()
status = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
os._exit(status if status >= 0 else 128 - status)
"""
"""Runs a command, in a process group of their own, and kills both when its standard input ends: that is when we have
ended, however that came about."""


class StepFailed(Exception):
    """A command ended with another status than 0. `output` is all that it printed."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(f"exit status {status}")
        self.output = output

    @property
    def reason(self) -> str:
        """The line of the output that tells most, as a sentence: that of the last exception, else the last."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()] or [str(self)]
        telling = [line for line in lines if _TELLING.match(line)] or lines
        return telling[-1].rstrip(".") + "."


def run_step(title: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
    """Run `command` to its end; what it prints goes to the file `log`.

    Raises StepFailed, and OSError when it cannot be started. It is killed with all that it has started when this is
    interrupted, and when this process dies.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        assert process.stdin is not None
        with _Progress(title) as progress:
            try:
                while process.poll() is None:
                    progress.tell()
                    time.sleep(_POLL_S)
            finally:
                process.stdin.close()
                process.wait()
    logger.info("%s: %s after %.0f s", title, "failed" if process.returncode else "done", progress.elapsed_s)
    if process.returncode != 0:
        raise StepFailed(process.returncode, log.read_text(encoding="utf-8", errors="replace"))


class _Progress:
    """A spinner with the time so far at a terminal; elsewhere a line at the start and every 15 s."""

    def __init__(self, title: str) -> None:
        console = Console(stderr=True, highlight=False)
        self._title = title
        self._begun_at = self._told_at = time.monotonic()
        self._status = Status(escape(title), console=console) if console.is_terminal else None
        if self._status is None:
            logger.info("%s", title)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._status is not None:
            self._status.stop()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun_at

    def tell(self) -> None:
        if self._status is not None:
            self._status.update(escape(f"{self._title} ({self.elapsed_s:.0f} s)"))
        elif time.monotonic() - self._told_at >= _REMIND_S:
            self._told_at = time.monotonic()
            logger.info("%s (%.0f s)", self._title, self.elapsed_s)
