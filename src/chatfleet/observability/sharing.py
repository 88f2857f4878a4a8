"""One answer for several processes: each writes its numbers to a file of its own, and whoever is asked adds them up.

The files lie in a folder that the processes' parent makes and removes (mode 0700). A file belongs to a place in the
parent's list rather than to a process: who is started in a place goes on from the numbers of who was there before, so
that sums never go back. The numbers of this moment (such as what is in flight) count only of processes that live.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from chatfleet.observability.circuits import CircuitNumbers
from chatfleet.observability.requests import EndpointNumbers

FILE_VARIABLE: Final = "CHATFLEET_METRICS_FILE"
"""The environment variable that names a process's file."""

_SUFFIX: Final = ".metrics"

logger = logging.getLogger(__name__)


class ProcessNumbers(msgspec.Struct):
    """What a process shares. `pid` is by what others know whether it lives."""

    pid: int
    requests: list[EndpointNumbers]
    upstream_connections: int = 0
    circuits: list[CircuitNumbers] = []


class SharedFile:
    """One process's file, and the view of those beside it. All methods block for the time of small file operations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._warned = False

    @property
    def name(self) -> str:
        return self._path.stem

    def write(self, numbers: bytes) -> None:
        """Replace the file at once and whole. What cannot be written is said in the log, the first time."""
        unfinished = self._path.with_suffix(".new")
        try:
            unfinished.write_bytes(numbers)
            unfinished.replace(self._path)
        except OSError as exc:
            if not self._warned:
                self._warned = True
                logger.warning("/metrics of other processes will not have this one's numbers: %s", exc)

    def read(self) -> ProcessNumbers | None:
        """What it has now: the numbers of who had it before."""
        return _read(self._path)

    def others(self) -> Iterator[tuple[str, ProcessNumbers]]:
        """The processes beside this one, living or dead, by their files' names. What is no such file is passed over."""
        try:
            paths = sorted(self._path.parent.glob(f"*{_SUFFIX}"))
        except OSError:
            return
        for path in paths:
            if path != self._path and (numbers := _read(path)) is not None:
                yield path.stem, numbers


def shared_file() -> SharedFile | None:
    """The file that our parent has named, where it has."""
    given = os.environ.get(FILE_VARIABLE)
    return SharedFile(Path(given)) if given else None


def file_environment(folder: Path, name: str) -> dict[str, str]:
    """What tells a process of its file in `folder`. `name` is unique there, and is shown as the process's."""
    return {FILE_VARIABLE: str(folder / f"{name}{_SUFFIX}")}


def is_alive(pid: int) -> bool:
    """Whether there is such a process. A number may have been given anew; then a dead one's moment stays on until its
    successor writes."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> ProcessNumbers | None:
    """None for anything but numbers that this version has written."""
    try:
        numbers = msgspec.json.decode(path.read_bytes(), type=ProcessNumbers)
        for one in numbers.requests:
            EndpointNumbers.of("", "").check_like(one)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return numbers if numbers.pid > 0 else None
