"""Alternatives told apart by their next character: what begins alike is written once (subset construction).

Rules that refer to themselves stay whole, as units in place of a character; so do tokens and other rules wherever
nothing else begins like them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.finishing import nullable_rules, recursive_rules
from chatfleet.chat.grammar.free_text import free_text_edges
from chatfleet.chat.grammar.matching import Frame, Matcher
from chatfleet.chat.grammar.nodes import (
    Alternatives,
    CharSet,
    FreeText,
    Grammar,
    Literal,
    Node,
    Reference,
    Repeat,
    Token,
    is_nullable,
)
from chatfleet.chat.grammar.nodes import Sequence as Parts

_MAX_STATES: Final = 2_000
"""Of one set of alternatives. Larger ones would take longer to compile than engines wait."""

Label = charsets.Ranges | Reference | Token
_Ways = tuple[Frame | None, ...]
"""Each once, in the order of the alternatives that they are from."""


class TooManyStates(Exception):
    """The alternatives cannot be told apart with few enough states."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What texts begin with: characters, and recursive rules, which count as characters of their own."""

    chars: charsets.Ranges
    rules: frozenset[str] = frozenset()

    def __or__(self, other: "Beginning") -> "Beginning":
        return Beginning(charsets.union(self.chars, other.chars), self.rules | other.rules)

    def meets(self, other: "Beginning") -> bool:
        return bool(self.rules & other.rules or charsets.intersection(self.chars, other.chars))


_NOWHERE: Final = Beginning(())


def any_meet(beginnings: Iterable[Beginning]) -> bool:
    """Whether two of them have something in common."""
    together = _NOWHERE
    for beginning in beginnings:
        if together.meets(beginning):
            return True
        together |= beginning
    return False


@dataclass(frozen=True, slots=True)
class State:
    """Where the alternatives have come to: these texts, where they differ in their first character, or else edges to
    other states, by number, no two of which begin alike."""

    texts: Sequence[Node]
    edges: Sequence[tuple[Label, int]]
    is_end: bool


class Factoring:
    """For one grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._rules = grammar.rules
        self._nullable = nullable_rules(grammar.rules)
        self.recursive: Final = recursive_rules(grammar.rules)
        self._known: dict[str, Beginning] = {}

    def beginning(self, node: Node) -> Beginning:
        match node:
            case Literal(text):
                return Beginning(charsets.of(text[0]))
            case CharSet(ranges):
                return Beginning(ranges)
            case FreeText(stops, behind):
                return Beginning(charsets.union(*(ranges for ranges, _ in free_text_edges(stops, behind))))
            case Reference(name) if name in self.recursive:
                return Beginning((), frozenset([name]))
            case Reference(name):
                if name not in self._known:
                    self._known[name] = self.beginning(self._rules[name])
                return self._known[name]
            case Repeat(part, _, _) | Token(part):
                return self.beginning(part)
            case Alternatives(options):
                return _together(map(self.beginning, options))
            case Parts(parts):
                return _together(self.beginning(part) for part in self._heads(parts))

    def _heads(self, parts: Iterable[Node]) -> Iterator[Node]:
        for part in parts:
            yield part
            if not is_nullable(part, self._nullable):
                return

    def states(self, options: Iterable[Node]) -> list[State]:
        """What the options have in common, state by state; the first is where they begin. Raises TooManyStates."""
        deadline = time.thread_time() + limits.MAX_COMPILE_S
        ways = _WaysOf(self, self._rules)
        start = ways.of(options)
        numbers: dict[frozenset[Frame | None], int] = {frozenset(start): 0}
        pending = [start]
        states: list[State] = []
        for current in pending:  # grows as it goes
            if len(pending) > _MAX_STATES or time.thread_time() > deadline:
                raise TooManyStates
            texts = ways.texts(current)
            if not any_meet(map(self.beginning, texts)):
                states.append(State(texts, (), is_end=False))
                continue
            edges = []
            leads_to, is_end = ways.edges(current)
            for label, target in leads_to:
                key = frozenset(target)
                if key not in numbers:
                    numbers[key] = len(pending)
                    pending.append(target)
                edges.append((label, numbers[key]))
            states.append(State((), edges, is_end=is_end))
        return states


class _WaysOf(Matcher):
    """Ways to read on, some units whole."""

    def __init__(self, factoring: Factoring, rules: Mapping[str, Node]) -> None:
        super().__init__(Grammar(Parts(()), rules))
        self._factoring = factoring

    def of(self, options: Iterable[Node]) -> _Ways:
        self._roots = list(options)  # kept alive: frames know nodes by their identity
        return tuple(self._frame(option, 0, None) for option in dict.fromkeys(self._roots))

    def texts(self, ways: _Ways) -> list[Node]:
        return list(dict.fromkeys(self._due_text(frame) for frame in ways))

    def _closed(self, ways: _Ways, whole: frozenset[Node] | None) -> list[Frame | None]:
        """The ways at characters, at units of `whole` (all, if None), and None for the end."""
        found: list[Frame | None] = []
        seen: set[Frame | None] = set()
        pending = list(reversed(ways))
        while pending:
            frame = pending.pop()
            if frame in seen:
                continue
            seen.add(frame)
            if frame is None or isinstance(frame.node, Literal | CharSet) or self._is_whole(frame.node, whole):
                found.append(frame)
            elif isinstance(frame.node, FreeText):
                found.append(frame)
                pending.append(frame.below)
            else:
                pending.extend(reversed(self._steps(frame)))
        return found

    def _is_whole(self, node: Node, whole: frozenset[Node] | None) -> bool:
        if isinstance(node, Reference) and node.name in self._factoring.recursive:
            return True
        return isinstance(node, Reference | Token) and (whole is None or node in whole)

    def edges(self, ways: _Ways) -> tuple[list[tuple[Label, _Ways]], bool]:
        """Where each next character, or unit, leads, no two of which begin alike; and whether the text may end."""
        whole: frozenset[Node] | None = None
        while True:
            closed = self._closed(ways, whole)
            due = [frame for frame in closed if frame is not None]
            chars = [edge for frame in due for edge in self._char_edges(frame)]
            units: dict[Node, list[Frame | None]] = {}
            for frame in due:
                if isinstance(frame.node, Reference | Token):
                    units.setdefault(frame.node, []).append(frame.below)
            alike = self._alike(units, charsets.union(*(ranges for ranges, _ in chars)))
            if not alike:
                break
            whole = frozenset(units.keys() - alike if whole is None else (whole & units.keys()) - alike)
        followers: dict[frozenset[Frame | None], tuple[charsets.Ranges, _Ways]] = {}
        for ranges in charsets.partition(ranges for ranges, _ in chars):
            target = _distinct(frame for taken, frame in chars if charsets.intersection(taken, ranges))
            taken, _ = followers.get(frozenset(target), ((), target))
            followers[frozenset(target)] = charsets.union(taken, ranges), target
        by_char: list[tuple[Label, _Ways]] = list(followers.values())
        by_unit: list[tuple[Label, _Ways]] = [
            (unit, _distinct(below)) for unit, below in units.items() if isinstance(unit, Reference | Token)
        ]
        return by_char + by_unit, None in closed

    def _alike(self, units: Iterable[Node], chars: charsets.Ranges) -> set[Node]:
        """Units that are not recursive and begin like a character or like another unit."""
        beginnings = {unit: self._factoring.beginning(unit) for unit in units}
        by_char = Beginning(chars)
        return {
            unit
            for unit, beginning in beginnings.items()
            if not (isinstance(unit, Reference) and unit.name in self._factoring.recursive)
            and (
                beginning.meets(by_char)
                or any(beginning.meets(other) for key, other in beginnings.items() if key is not unit)
            )
        }

    def _char_edges(self, frame: Frame) -> list[tuple[charsets.Ranges, Frame | None]]:
        match frame.node:
            case Literal(value):
                rest = frame.place + 1
                following = self._frame(frame.node, rest, frame.below) if rest < len(value) else frame.below
                return [(charsets.of(value[frame.place]), following)]
            case CharSet(ranges):
                return [(ranges, frame.below)]
            case FreeText(stops, behind):
                return [
                    (ranges, self._frame(self._free_text(stops, following), 0, frame.below))
                    for ranges, following in free_text_edges(stops, behind)
                ]
        return []


def _distinct(frames: Iterable[Frame | None]) -> _Ways:
    """The frames, each once, without the ends of tokens, which tell nothing apart here."""
    result: dict[Frame | None, None] = {}
    for frame in frames:
        opened = frame
        while opened is not None and isinstance(opened.node, Parts) and not opened.node.parts:
            opened = opened.below
        result[opened] = None
    return tuple(result)


def _together(beginnings: Iterable[Beginning]) -> Beginning:
    together = _NOWHERE
    for beginning in beginnings:
        together |= beginning
    return together
