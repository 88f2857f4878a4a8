"""The record of what `chatfleet serve` runs on this machine, by which other commands find it.

Each run has a folder of its own (mode 0700) in the user's runtime or state folder: the record (mode 0600), and what its
parts keep for as long as it lasts. The run holds a lock on its record: a record that is not locked is of a run that was
killed, and is removed by whoever sees it first.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:8000"
DEFAULT_CONTROLLER: Final = "http://127.0.0.1:21001"

_RECORD: Final = "record.json"
_UNFINISHED: Final = "record.new"


class LocalFleet(msgspec.Struct, frozen=True):
    """A running `chatfleet serve`. `started_at` is Unix time in seconds; `certificate` (PEM) is that of an https
    endpoint, by which whoever reads the record knows it, whoever signed it and whatever it names."""

    url: str
    controller_url: str
    fleet_token: str
    pid: int
    started_at: float
    certificate: str | None = None

    def __repr__(self) -> str:
        return f"LocalFleet({self.url}, pid {self.pid})"  # no token


def runs_folder() -> Path:
    """Where the folders of all runs are. Raises RuntimeError when the user has no home."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        if given := os.environ.get(name):
            return Path(given) / "chatfleet"
    return Path.home() / ".local" / "state" / "chatfleet"


@contextmanager
def run_folder(command: str = "serve") -> Iterator[Path | None]:
    """A folder for one run of a command, removed at the end; None where none can be made."""
    try:
        parent = runs_folder()
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent.chmod(0o700)
        folder = Path(tempfile.mkdtemp(prefix=f"{command}-", dir=parent))
    except (OSError, RuntimeError):
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def published(folder: Path, fleet: LocalFleet) -> Iterator[None]:
    """Have the run found by other commands. Raises OSError when the record cannot be written or locked."""
    fd = os.open(folder / _UNFINISHED, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(fd, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(msgspec.json.encode(fleet))
        file.flush()
        (folder / _UNFINISHED).rename(folder / _RECORD)  # only now, so that nobody sees it unlocked
        try:
            yield
        finally:
            (folder / _RECORD).unlink(missing_ok=True)


def running_fleets() -> list[LocalFleet]:
    """All that run now, the newest first. Removes what killed ones have left."""
    fleets: list[LocalFleet] = []
    try:
        records = list(runs_folder().glob(f"serve-*/{_RECORD}"))
    except (OSError, RuntimeError):
        return []
    for record in records:
        with suppress(OSError, msgspec.MsgspecError), record.open("rb") as file:
            if _is_locked(file.fileno()):
                fleets.append(msgspec.json.decode(file.read(), type=LocalFleet))
            else:
                shutil.rmtree(record.parent, ignore_errors=True)
    return sorted(fleets, key=lambda fleet: fleet.started_at, reverse=True)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def find_endpoint() -> str:
    """The base URL of the newest `chatfleet serve` of this user, or of where one would be."""
    return next((fleet.url for fleet in running_fleets()), DEFAULT_ENDPOINT)


def known_certificate(url: str) -> str | None:
    """The certificate (PEM) of the endpoint at this URL, where that is one of a `chatfleet serve` of this user."""
    address = urlsplit(url)[:2]
    return next((fleet.certificate for fleet in running_fleets() if urlsplit(fleet.url)[:2] == address), None)


def find_controllers(urls: list[str], token: str | None) -> tuple[list[str], str | None]:
    """The controllers that a command speaks to, and the token for them.

    Those that are given; else the one of the newest `chatfleet serve` of this user, with its token; else the one on
    this machine's usual port.
    """
    if urls:
        return urls, token
    for fleet in running_fleets():
        return [fleet.controller_url], fleet.fleet_token
    return [DEFAULT_CONTROLLER], token
