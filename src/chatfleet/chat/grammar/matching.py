"""Reading text by a grammar: whether it fits, and what may follow.

A text may be read in many ways at once: each is a stack of what is still due, and stacks share their lower ends.
Grammars have no left recursion (`finishing.py`), so that every way comes to a character or to its end.
"""

from collections.abc import Iterable
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.finishing import pruned
from chatfleet.chat.grammar.free_text import free_text_edges, read_on
from chatfleet.chat.grammar.nodes import (
    EMPTY,
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
    choice,
    join,
    repeated,
    text,
    token,
)


class TooManyWays(ValueError):
    """A text can be read in more than `limits.MAX_MATCH_STATES` ways."""


class Frame:
    """What is due: `node` from `place` on (a character of a literal, a part, a turn), then `below`."""

    __slots__ = ("below", "node", "place")

    def __init__(self, node: Node, place: int, below: "Frame | None") -> None:
        self.node = node
        self.place = place
        self.below = below


_END_OF_TOKEN: Final = Sequence(())
"""As a frame's node, by identity: here the token that the frames above belong to ends."""


class Matcher:
    """The ways in which a text that grows can be read. Raises TooManyWays."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._known: dict[tuple[int, int, int], Frame] = {}
        self._bottom = self._frame(grammar.root, 0, None)
        self._free: dict[tuple[tuple[str, ...], str], FreeText] = {}
        self._due: list[Frame] = []
        self._ways: list[Frame | None] = []
        self.is_complete = False
        """Whether the text so far is one of the grammar's."""
        self._open([self._bottom])

    def feed(self, more: str) -> bool:
        """Reads on; False where the text does not fit (any more)."""
        for char in more:
            followers: list[Frame | None] = []
            for frame in self._due:
                node = frame.node
                if isinstance(node, Literal):
                    if node.text[frame.place] == char:
                        rest = frame.place + 1
                        followers.append(self._frame(node, rest, frame.below) if rest < len(node.text) else frame.below)
                elif isinstance(node, CharSet):
                    if charsets.contains(node.ranges, char):
                        followers.append(frame.below)
                elif isinstance(node, FreeText):
                    behind = read_on(node.stops, node.behind, char)
                    if behind is not None:
                        followers.append(self._frame(self._free_text(node.stops, behind), 0, frame.below))
            self._open(followers)
            if not self._due and not self.is_complete:
                return False
        return True

    def state(self) -> frozenset[object]:
        """Where the reading is, as something to compare and to come back to."""
        return frozenset(self._ways)

    def restore(self, state: frozenset[object]) -> None:
        """Goes back to what `state` gave."""
        self._open(frame for frame in state if frame is None or isinstance(frame, Frame))

    def next_chars(self) -> list[charsets.Ranges]:
        """The sets of characters of which one may follow."""
        return [ranges for frame in self._due for ranges in _first_chars(frame)]

    def rest(self) -> Node:
        """What may follow, with the grammar's own rules."""
        return choice(self._due_text(frame) for frame in self._ways)

    def _due_text(self, frame: Frame | None) -> Node:
        parts: list[Node] = []
        current = frame
        while current is not None:
            if current.node is _END_OF_TOKEN:
                parts = [token(join(parts))]
            else:
                parts.append(_from(current.node, current.place))
            current = current.below
        return join(parts)

    def _free_text(self, stops: tuple[str, ...], behind: str) -> FreeText:
        return self._free.setdefault((stops, behind), FreeText(stops, behind))

    def _frame(self, node: Node, place: int, below: Frame | None) -> Frame:
        key = (id(node), place, id(below))
        frame = self._known.get(key)
        if frame is None:
            frame = self._known[key] = Frame(node, place, below)
        return frame

    def _open(self, frames: Iterable[Frame | None]) -> None:
        """Goes on with frames until each is at a character; the text ends where none is left."""
        self._ways = list(dict.fromkeys(frames))
        pending = list(self._ways)
        seen: set[int] = set()
        self._due = []
        self.is_complete = False
        while pending:
            frame = pending.pop()
            if frame is None:
                self.is_complete = True
                continue
            if id(frame) in seen:
                continue
            seen.add(id(frame))
            if len(seen) > limits.MAX_MATCH_STATES:
                raise TooManyWays("the grammar can read this text in too many ways")
            if isinstance(frame.node, Literal | CharSet | FreeText):
                self._due.append(frame)
            if isinstance(frame.node, FreeText):
                pending.append(frame.below)
            elif not isinstance(frame.node, Literal | CharSet):
                pending.extend(self._steps(frame))

    def _steps(self, frame: Frame) -> list[Frame | None]:
        below = frame.below
        match frame.node:
            case Sequence(parts) as node:
                if frame.place == len(parts):
                    return [below]
                rest = below if frame.place + 1 == len(parts) else self._frame(node, frame.place + 1, below)
                return [self._frame(parts[frame.place], 0, rest)]
            case Alternatives(options):
                return [self._frame(option, 0, below) for option in options]
            case Repeat(part, low, high) as node:
                turns = min(frame.place + 1, low) if high is None else frame.place + 1
                steps: list[Frame | None] = []
                if high is None or frame.place < high:
                    steps.append(self._frame(part, 0, below if turns == high else self._frame(node, turns, below)))
                return [*steps, below] if frame.place >= low else steps
            case Reference(name):
                return [self._frame(self._grammar.rules[name], 0, below)]
            case Token(part):
                return [self._frame(part, 0, self._frame(_END_OF_TOKEN, 0, below))]
        raise AssertionError(frame.node)


def _first_chars(frame: Frame) -> list[charsets.Ranges]:
    match frame.node:
        case Literal(value):
            return [charsets.of(value[frame.place])]
        case CharSet(ranges):
            return [ranges]
        case FreeText(stops, behind):
            return [ranges for ranges, _ in free_text_edges(stops, behind)]
    raise AssertionError(frame.node)


def _from(node: Node, place: int) -> Node:
    """The node without what of it has been read."""
    match node:
        case Literal(value):
            return text(value[place:])
        case Sequence(parts):
            return join(parts[place:])
        case Repeat(part, low, high):
            return repeated(part, max(0, low - place), None if high is None else high - place)
        case _:
            return node


def _read(grammar: Grammar, value: str) -> Matcher | None:
    matcher = Matcher(grammar)
    return matcher if matcher.feed(value) else None


def matches(grammar: Grammar, value: str) -> bool:
    """Whether the text is one of the grammar's. Raises ValueError where it can be read in too many ways."""
    matcher = _read(grammar, value)
    return matcher is not None and matcher.is_complete


def is_complete(grammar: Grammar, value: str) -> bool:
    """Whether the text is one of the grammar's and nothing can follow. Raises ValueError as `matches`."""
    matcher = _read(grammar, value)
    return matcher is not None and matcher.is_complete and matcher.rest() == EMPTY


def remaining(grammar: Grammar, value: str) -> Grammar:
    """The grammar of what may follow behind `value`. Raises ValueError where `value` begins no text of the grammar's,
    or can be read in too many ways."""
    matcher = _read(grammar, value)
    if matcher is None:
        raise ValueError(f"the text does not fit the grammar: {value[-40:]!r}")
    return pruned(Grammar(matcher.rest(), grammar.rules))
