"""Text in which some strings do not occur, read character by character (Aho and Corasick, 1975)."""

from collections.abc import Iterable, Iterator

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.nodes import FreeText, Grammar


def read_on(stops: tuple[str, ...], behind: str, char: str) -> str | None:
    """The longest end of the text that a stop may begin with, once `char` is behind it; None where a stop has come."""
    read = behind + char
    if any(read.endswith(stop) for stop in stops):
        return None
    return next(read[start:] for start in range(len(read) + 1) if any(stop.startswith(read[start:]) for stop in stops))


def free_text_edges(stops: tuple[str, ...], behind: str) -> Iterator[tuple[charsets.Ranges, str]]:
    """The characters that may follow, and what is behind the text then."""
    letters = sorted(set("".join(stops)))
    yield charsets.complement(charsets.of("".join(letters))), ""
    for letter in letters:
        following = read_on(stops, behind, letter)
        if following is not None:
            yield charsets.of(letter), following


def text_without(stops: Iterable[str]) -> Grammar:
    """Any text in which none of the strings occurs. Without strings: any text."""
    return Grammar(FreeText(tuple(sorted({stop for stop in stops if stop}))))
