"""Examples in documents: what they tell a reader to run, and what they say comes of it."""

import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from support.wire import PATIENCE_S

URL = "http://127.0.0.1:8000"
"""Where documents say that the endpoint is."""

_PIECES = re.compile(
    r"^<!-- serve: (?P<serve>.*?) -->$|^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)
_EXACT_KEYS = {"object", "role", "type", "finish_reason", "name", "code", "param"}


@dataclass(frozen=True)
class Example:
    """A block to be run against `chatfleet serve ARGUMENTS`, and the block behind it that shows what it prints."""

    document: str
    line: int
    language: str
    code: str
    arguments: tuple[str, ...]
    shown: str | None
    shown_as: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def run(self, url: str) -> None:
        """Fails unless it ends well and prints what the document shows."""
        code = self.code.replace(URL, url)
        said = _run_shell(code) if self.language == "sh" else _run_python(code)
        assert said.strip(), f"{self} prints nothing"
        if self.shown is None or self.shown_as is None:
            assert '"error"' not in said, f"{self}: {said}"
        elif self.shown_as == "json":
            wrong = misfit(json.loads(said), json.loads(self.shown), "$")
            assert wrong is None, f"{self}: {wrong}\n{said}"
        else:
            pattern = ".*?".join(map(re.escape, self.shown.strip().split("...")))
            assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"{self} prints:\n{said}"


def examples(path: Path) -> Iterator[Example]:
    """Every `sh` and `python` block of a document, in order."""
    text = path.read_text(encoding="utf-8")
    arguments: tuple[str, ...] = ()
    pieces = list(_PIECES.finditer(text))
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        if piece["serve"] is not None:
            arguments = tuple(shlex.split(piece["serve"]))
        elif piece["language"] in ("sh", "python"):
            shown = (
                following
                if following is not None and _shows(text[piece.end() : following.start()], following)
                else None
            )
            yield Example(
                path.name,
                text.count("\n", 0, piece.start()) + 1,
                piece["language"],
                piece["body"],
                arguments,
                shown and shown["body"],
                shown and shown["language"],
            )


def _run_shell(code: str) -> str:
    said = subprocess.run(["bash", "-ec", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert said.returncode == 0, f"{code}\n{said.stdout}{said.stderr}"
    return said.stdout


def _run_python(code: str) -> str:
    """In this process, since every new one takes seconds to import the SDK; its clients are closed at the end."""
    said = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        with redirect_stdout(said):
            exec(code, names)
    finally:
        for client in (value for value in names.values() if isinstance(value, OpenAI)):
            client.close()
    return said.getvalue()


def _shows(between: str, following: re.Match[str]) -> bool:
    """Whether a block is the output of the one before it: nothing is between them but a line that ends with a colon."""
    lines = [line for line in between.splitlines() if line.strip()]
    return following["language"] in ("json", "text") and (not lines or (len(lines) == 1 and lines[0].endswith(":")))


def misfit(value: Any, shown: Any, path: str) -> str | None:
    """Where a printed value is not of the kind that a document shows; None where it is."""
    if isinstance(shown, dict):
        if not isinstance(value, dict):
            return f"{path} is {value!r}, not an object"
        missing, more = shown.keys() - value.keys() - {"..."}, value.keys() - shown.keys()
        if missing or (more and "..." not in shown):
            return f"{path} has not the keys {missing} and has {more}"
        wrong = (misfit(value[key], shown[key], f"{path}.{key}") for key in shown if key != "...")
        return next(filter(None, wrong), None)
    if isinstance(shown, list):
        if not isinstance(value, list) or not value:
            return None if value == [] and not shown else f"{path} is {value!r}, not a list like {shown!r}"
        if not shown:
            return None
        misfits = [[misfit(each, one, f"{path}[]") for one in shown] for each in value]
        return next((wrong[0] for wrong in misfits if None not in wrong), None)
    if isinstance(shown, str) and isinstance(value, str):
        exact = path.rpartition(".")[2] in _EXACT_KEYS
        pattern = ".*".join(map(re.escape, shown.split("...")))
        fits = bool(re.fullmatch(pattern, value, re.DOTALL)) if exact or "..." in shown else True
        return None if fits else f"{path} is {value!r}, not {shown!r}"
    numbers = (int, float)
    is_number = isinstance(value, numbers) and not isinstance(value, bool)
    if isinstance(shown, numbers) and not isinstance(shown, bool):
        return None if is_number else f"{path} is {value!r}, not a number"
    return None if value is shown else f"{path} is {value!r}, not {shown!r}"
