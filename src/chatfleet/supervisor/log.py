"""One readable log out of what all parts print."""

import re
import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.text import Text

MAX_LINE_BYTES: Final = 8192
OWN_NAME: Final = "chatfleet"

_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class LineSplitter:
    """Lines out of bytes that come in any pieces. A line of more than MAX_LINE_BYTES becomes several."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [piece for line in lines for piece in _pieces(line)]

    def end(self) -> list[str]:
        """What is left when no more comes."""
        rest, self._rest = self._rest, b""
        return _pieces(rest) if rest else []


def _pieces(line: bytes) -> list[str]:
    line = line.rstrip(b"\r").rpartition(b"\r")[2]  # a line that was written over, as progress bars do
    starts = range(0, max(len(line), 1), MAX_LINE_BYTES)
    return [shown(line[at : at + MAX_LINE_BYTES].decode(errors="replace")) for at in starts]


def shown(text: str) -> str:
    """Text that no terminal takes for a command: control characters as their escapes."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class LogConsole(Console):
    """A console whose loss ends nothing: the fleet goes on, unseen."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def show(self, what: RenderableType) -> None:
        """Print, if that is possible."""
        try:
            self.print(what)
        except OSError:  # the terminal is gone
            self.quiet = True


class FleetLog:
    """Lines, each after the name of the part that it is from."""

    def __init__(self, console: LogConsole, names: Sequence[str]) -> None:
        self._console = console
        self._width = max(map(len, [OWN_NAME, *names]))
        self._styles = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}

    def line(self, name: str, text: str) -> None:
        style = self._styles.get(name, "bold")
        self._console.show(Text.assemble((f"{name:<{self._width}} ", style), ("| ", "dim"), text))

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        self.line(OWN_NAME, text)
