"""The registered servers on disk, so that they are still registered after a restart."""

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from chatfleet.core.fleet import ServerRegistration

logger = logging.getLogger(__name__)


class _State(BaseModel):
    servers: tuple[ServerRegistration, ...]


class StateFile:
    """A small JSON file, readable by its owner alone, since it may hold API keys. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> tuple[ServerRegistration, ...]:
        """What was saved last; nothing when there is no file. A broken one is moved aside, with a warning."""
        try:
            return _State.model_validate_json(self.path.read_bytes()).servers
        except FileNotFoundError:
            return ()
        except ValidationError:
            self._set_aside()
        except OSError as exc:
            logger.warning("the state file %s cannot be read: %s. Register servers again.", self.path, exc.strerror)
        return ()

    def save(self, servers: Iterable[ServerRegistration]) -> None:
        """Replace the file's content, all or nothing. A file that cannot be written is a warning."""
        content = _State(servers=tuple(servers)).model_dump_json().encode()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._replace(content)
        except OSError as exc:
            logger.warning(
                "the state file %s cannot be written: %s. After a restart of this controller, register servers again, "
                "or choose another --state-file.",
                self.path,
                exc.strerror,
            )

    def _replace(self, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)  # with mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _set_aside(self) -> None:
        aside = self.path.with_name(self.path.name + ".broken")
        try:
            os.replace(self.path, aside)
        except OSError as exc:
            logger.warning("the state file %s is broken and cannot be moved aside: %s", self.path, exc.strerror)
        else:
            logger.warning(
                "the state file %s is broken; it is kept as %s. Register servers again, with: chatfleet register",
                self.path,
                aside.name,
            )


def default_state_file(port: int) -> Path | None:
    """`$XDG_STATE_HOME/chatfleet/controller-<port>.json`, by default in ~/.local/state; None without a home."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:
        logger.warning("there is no home folder: registered servers are forgotten at a restart. Set --state-file.")
        return None
    return folder / "chatfleet" / f"controller-{port}.json"
