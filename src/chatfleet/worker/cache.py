"""The folder where a user's workers keep what they have made: conversions, their tools, tokenizers."""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final

from chatfleet.core.errors import ConfigurationError

logger = logging.getLogger(__name__)

_MAX_NAME_CHARS: Final = 60


def cache_folder(given: Path | None) -> Path:
    """The folder that is given, or that of the user. Raises ConfigurationError when the user has no home."""
    if given is not None:
        return given.expanduser().absolute()
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "chatfleet"
    try:
        return Path.home() / ".cache" / "chatfleet"
    except RuntimeError as exc:
        raise ConfigurationError(
            "There is no home folder to keep converted models in. Name a folder with --cache."
        ) from exc


def entry_name(name: str, *parts: str) -> str:
    """A file name for what is made of `parts`: readable, and another for other parts."""
    readable = "".join(char if char.isalnum() or char in "-_." else "-" for char in name).strip(".-")
    digest = blake2b("\0".join((name, *parts)).encode(), digest_size=8).hexdigest()
    return f"{readable[-_MAX_NAME_CHARS:]}-{digest}"


def make_once(entry: Path, make: Callable[[Path], None], *, is_whole: Callable[[Path], bool] = Path.exists) -> Path:
    """`entry`, which `make` fills where it is not there yet: an empty folder, which is renamed when it is done.

    One process at a time makes an entry; others wait for it. What an interrupted one has left is removed by the next.
    Raises ConfigurationError when the folder cannot be written, and whatever `make` raises.
    """
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(entry.with_name(f"{entry.name}.lock")):
            if is_whole(entry):
                return entry
            shutil.rmtree(entry, ignore_errors=True)
            unfinished = entry.with_name(f"{entry.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                make(unfinished)
                unfinished.rename(entry)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return entry
    except OSError as exc:
        raise ConfigurationError(
            f"{entry.parent} cannot be written ({exc.strerror or exc}). Free some space there, or name another folder "
            "with --cache."
        ) from exc


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is making %s: waiting for it", path.name.removesuffix(".lock"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
