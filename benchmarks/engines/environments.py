"""Peers in environments of their own, made when they are first needed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from shared import CannotRun

_TAIL_LINES = 15


@dataclass(frozen=True)
class Environment:
    """What pip installs, a step after the other, what it removes in the end, and the package that the peer is."""

    package: str
    installs: tuple[tuple[str, ...], ...]
    removes: tuple[str, ...] = ()

    def python(self, folder: Path, console: Console) -> Path:
        """The interpreter of the environment under `folder`, which is made when it is not there or is another one.

        Raises CannotRun when pip fails.
        """
        home = folder / f"peers-{self.package}"
        python, made_of = home / "bin" / "python", home / "made-of.json"
        wanted = json.dumps([self.installs, self.removes])
        if not made_of.exists() or made_of.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            home.parent.mkdir(parents=True, exist_ok=True)
            console.print(f"{self.package}: an environment in {home}; it is kept for the next run")
            _run([sys.executable, "-m", "venv", str(home)], self.package, console)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
            for packages in self.installs:
                _run([*pip, "install", *packages], self.package, console)
            if self.removes:
                _run([*pip, "uninstall", "--yes", *self.removes], self.package, console)
            made_of.write_text(wanted)
        return python


def version(python: Path, package: str) -> str:
    """Of a package in the environment of an interpreter."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    finished = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return finished.stdout.strip() or "of unknown version"


def _run(command: Sequence[str], package: str, console: Console) -> None:
    """With the last line that it printed beside a spinner."""
    said: list[str] = []
    with (
        console.status(package) as status,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            status.update(f"{package}: {line.strip()[:100]}")
    if process.returncode != 0:
        raise CannotRun(
            f"The environment of {package} cannot be made: {' '.join(command)} ended with status "
            f"{process.returncode}. It said:\n{''.join(said[-_TAIL_LINES:])}"
        )
