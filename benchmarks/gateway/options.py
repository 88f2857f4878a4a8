"""How the comparisons read their arguments, and how a signal ends them."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from machine import CannotRun


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them, each once. Raises argparse.ArgumentTypeError for one that is not known."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(names))

    return read


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def run_to_the_end(compare: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Compare, until a signal. What it needs and does not have is said, with exit status 2."""
    end_on_signals()
    try:
        compare(arguments)
    except CannotRun as exc:
        print(f"Error: {exc}", file=sys.stderr)
        sys.exit(2)


def end_on_signals() -> None:
    """Ctrl-C and SIGTERM end all that was started, undisturbed by a second signal."""

    def end(number: int, frame: object) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
