"""Random texts of a grammar."""

from random import Random

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.free_text import free_text_edges
from chatfleet.chat.grammar.nodes import (
    Alternatives,
    CharSet,
    FreeText,
    Grammar,
    Literal,
    Node,
    Reference,
    Repeat,
    Sequence,
    Token,
)

_LIKELY = charsets.normalized([(0x20, 0x7E)])


class SentenceTooLong(Exception):
    """The way through the grammar that was tried does not end soon."""


def random_sentence(grammar: Grammar, random: Random, *, most_chars: int = 2000) -> str:
    """A text of the grammar. Deep in it, the shortest ways are taken."""
    for patience in (12, 6, 2, 0):
        try:
            return _Writer(grammar, random, patience, most_chars).write(grammar.root, 0)
        except SentenceTooLong:
            continue
    raise SentenceTooLong


class _Writer:
    def __init__(self, grammar: Grammar, random: Random, patience: int, most_chars: int) -> None:
        self._grammar = grammar
        self._random = random
        self._patience = patience
        self._most_chars = most_chars
        self._written = 0
        self._heights: dict[str, int] = {}
        self._measure()

    def _measure(self) -> None:
        """How deep the shallowest text of each rule is nested in rules."""
        grew = True
        while grew:
            grew = False
            for name, body in self._grammar.rules.items():
                height = self._height(body)
                if height is not None and height + 1 < self._heights.get(name, 10**6):
                    self._heights[name] = height + 1
                    grew = True

    def _height(self, node: Node) -> int | None:
        match node:
            case Reference(name):
                return self._heights.get(name)
            case Sequence(parts):
                heights = [self._height(part) for part in parts]
                return None if None in heights else max((h for h in heights if h is not None), default=0)
            case Alternatives(options):
                known = [h for h in map(self._height, options) if h is not None]
                return min(known, default=None)
            case Repeat(part, low, _):
                return 0 if low == 0 else self._height(part)
            case Token(part):
                return self._height(part)
            case _:
                return 0

    def write(self, node: Node, depth: int) -> str:
        is_late = depth > self._patience
        match node:
            case Literal(text):
                self._spend(len(text))
                return text
            case CharSet(ranges):
                self._spend(1)
                return self._char(ranges)
            case Sequence(parts):
                return "".join(self.write(part, depth) for part in parts)
            case Alternatives(options):
                if is_late:
                    return self.write(min(options, key=lambda option: self._height(option) or 0), depth)
                return self.write(self._random.choice(options), depth)
            case Repeat(part, low, high):
                more = 0 if is_late else self._random.choice((0, 0, 1, 2, 3, 8))
                turns = low + more if high is None else min(high, low + more)
                if high is not None and not is_late and high < 40 and self._random.random() < 0.1:
                    turns = high
                return "".join(self.write(part, depth) for _ in range(turns))
            case Reference(name):
                if depth > self._patience + 60:
                    raise SentenceTooLong
                return self.write(self._grammar.rules[name], depth + 1)
            case Token(part):
                return self.write(part, depth)
            case FreeText(stops, behind):
                return self._free_text(stops, behind)

    def _free_text(self, stops: tuple[str, ...], behind: str) -> str:
        read = []
        for _ in range(self._random.randint(0, 12)):
            ranges, target = self._random.choice(list(free_text_edges(stops, behind)))
            read.append(self._char(ranges))
            behind = target
        return "".join(read)

    def _char(self, ranges: charsets.Ranges) -> str:
        likely = charsets.intersection(ranges, _LIKELY)
        if likely and self._random.random() < 0.9:
            ranges = likely
        low, high = self._random.choice(ranges)
        return chr(self._random.randint(low, high))

    def _spend(self, chars: int) -> None:
        self._written += chars
        if self._written > self._most_chars:
            raise SentenceTooLong
