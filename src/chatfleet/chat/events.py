"""What a model's output means: events that an answer is made of."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call of which the function's name is known. `index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of a call's arguments; all fragments of a call are one JSON text."""

    index: int
    fragment: str


OutputEvent = Content | Reasoning | CallBegin | CallArguments


class OutputParser(Protocol):
    """Reads one choice's text as it grows. What it gives never depends on how the text was split, apart from where
    fragments of one kind are cut."""

    def feed(self, text: str) -> list[OutputEvent]: ...

    def finish(self) -> list[OutputEvent]:
        """The end of the text: what was held back, as what it most likely was meant to be."""
        ...
