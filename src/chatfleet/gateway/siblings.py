"""How the gateway processes that share a port find the one that has the answers to requests with an Idempotency-Key."""

import os
import socket
from pathlib import Path
from typing import Final, NamedTuple

from chatfleet.core.errors import ConfigurationError

PLACE_VARIABLE: Final = "CHATFLEET_IDEMPOTENCY_PLACE"
"""The environment variable by which a process knows its place among its siblings."""

_FILE: Final = "keys.sock"
_MAX_PATH_BYTES: Final = 103  # of a socket on macOS; Linux takes 107
_OWNER, _OTHER, _NOWHERE = "owner:", "other:", "nowhere"


class Place(NamedTuple):
    """`path` is the socket of the owner, who has the answers; None where there is none: nobody else asks, or nobody can
    be asked."""

    is_owner: bool
    path: Path | None


def place_environments(folder: Path | None, count: int) -> list[dict[str, str]]:
    """What tells each of `count` processes its place: the first is the owner. Without a `folder` (mode 0700), or with
    one whose path is too long for a socket, none of several is."""
    if count == 1:
        return [{}]
    path = None if folder is None else folder / _FILE
    if path is None or len(os.fsencode(path)) > _MAX_PATH_BYTES:
        return [{PLACE_VARIABLE: _NOWHERE}] * count
    return [{PLACE_VARIABLE: f"{_OTHER if number else _OWNER}{path}"} for number in range(count)]


def own_place() -> Place:
    """What our parent has said; without a parent: the owner, without siblings."""
    given = os.environ.get(PLACE_VARIABLE, "")
    for prefix in (_OWNER, _OTHER):
        if given.startswith(prefix):
            return Place(prefix == _OWNER, Path(given.removeprefix(prefix)))
    return Place(given != _NOWHERE, None)


def listen_for_siblings(path: Path, backlog: int) -> socket.socket:
    """A bound socket, in place of what an owner before has left. Raises ConfigurationError. Blocks for a moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as exc:
        listener.close()
        raise ConfigurationError(
            f"The gateway's processes cannot share what Idempotency-Keys need, since {path} cannot be made: "
            f"{exc.strerror or exc}. XDG_RUNTIME_DIR may name another folder."
        ) from exc
    listener.setblocking(False)
    return listener
