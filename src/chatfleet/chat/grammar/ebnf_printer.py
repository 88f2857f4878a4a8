"""A grammar as xgrammar's EBNF.

Repetition is written as rules that end with themselves, and with what stands behind. xgrammar reads `(a | b c)*` and
`a{0,64}` too, but then finds out anew at every token what may follow: 90 to 300 ms a token with 128 000 tokens, where
the rules below take 0.1 ms.

Alternatives of one rule never begin alike. xgrammar 0.1.32, which does all that openvino-genai 2026.4.1 is seen to do,
makes one of states that the same character leads to, and of states that lead on alike, at once, and so lets texts
through that are in no alternative: `"a" | "bbab" | "bbb"` takes "bbaab". In the place of a reference at the beginning
of an alternative it puts the rule, if that has no references and cannot be empty. Other rules stay apart, and of
several that may begin at one place it finds out rightly which it is.
"""

from collections.abc import Iterator
from typing import Final

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.automata import of_free_text
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.components import components
from chatfleet.chat.grammar.factoring import Beginning, Factoring, Label, State, TooManyStates, any_meet
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

_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_NAMED: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_BLOCK: Final = 64
"""Counts beyond are made of blocks of so many. A rule for each count is faster to follow (0.5 ms a token with 152,000
tokens, against 26 to 35), but takes 75 ms each to compile."""
_MOST_REPEATED: Final = 12
_MOST_OPTIONS: Final = 4
_MOST_INLINE: Final = 80
_BEYOND_ASCII: Final[charsets.Ranges] = charsets.complement(((0, 0x7F),))


def to_ebnf(grammar: Grammar) -> str:
    """The grammar in xgrammar's syntax; its root is the rule `root`."""
    return _Printer(grammar).text()


class _Printer:
    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._names = {name: f"r{index}" for index, name in enumerate(grammar.rules)}
        self._factoring = Factoring(grammar)
        self._lines: list[str] = []
        self._helpers: dict[str, str] = {}
        self._factored: dict[Alternatives, list[str]] = {}
        self._turns_of: dict[Node, list[str]] = {}

    def text(self) -> str:
        self._lines.append(f"root ::= {self._alternatives(self._grammar.root)}")
        for name, body in self._grammar.rules.items():
            self._lines.append(f"{self._names[name]} ::= {self._alternatives(body)}")
        return "\n".join(self._lines) + "\n"

    def _helper(self, body: str) -> str:
        """The name of a rule with this body."""
        name = self._helpers.get(body)
        if name is None:
            name = self._helpers[body] = f"h{len(self._helpers)}"
            self._lines.append(f"{name} ::= {body}")
        return name

    def _alternatives(self, node: Node) -> str:
        return " | ".join(self._options(node))

    def _options(self, node: Node) -> list[str]:
        """No two of them begin alike, if there are several."""
        if not (isinstance(node, Alternatives) and node.options):
            return [self._sequence(node)]
        if not any_meet(map(self._factoring.beginning, node.options)):
            return self._either(
                [(self._factoring.beginning(option), self._sequence(option)) for option in node.options]
            )
        if node not in self._factored:
            self._factored[node] = self._told_apart(node)
        return self._factored[node]

    def _told_apart(self, node: Alternatives) -> list[str]:
        """The alternatives of `node`, of which some begin alike."""
        try:
            states = self._factoring.states(node.options)
        except TooManyStates:
            return [self._apart(self._sequence(option)) for option in node.options]
        options: list[str] = []
        names: dict[int, str] = {}
        leads_to = {number: [target for _, target in state.edges] for number, state in enumerate(states)}
        for component in components(leads_to):
            is_circle = len(component) > 1 or component[0] in leads_to[component[0]]
            if is_circle:
                for number in reversed(component):
                    names[number] = self._new_name()
            for number in reversed(component):
                options = self._state(states[number], names)
                body = " | ".join(options)
                if is_circle:
                    self._lines.append(f"{names[number]} ::= {body}")
                else:
                    is_short = " | " not in body and len(body) <= _MOST_INLINE
                    names[number] = body if is_short else self._helper(body)
        return options

    def _state(self, state: State, names: dict[int, str]) -> list[str]:
        if state.texts:
            return self._either([(self._factoring.beginning(text), self._alternatives(text)) for text in state.texts])
        ways = [
            (self._label_beginning(label), f"{self._label(label)} {names[target]}".removesuffix(' ""'))
            for label, target in state.edges
        ]
        return [*self._either(ways), '""'] if state.is_end else self._either(ways)

    def _label(self, label: Label) -> str:
        return self._item(label if isinstance(label, Reference | Token) else CharSet(label))

    def _label_beginning(self, label: Label) -> Beginning:
        return self._factoring.beginning(label) if isinstance(label, Reference | Token) else Beginning(label)

    def _either(self, ways: list[tuple[Beginning, str]]) -> list[str]:
        """Ways that begin with different characters, and yet may with the same byte: those are kept apart."""
        leads = [_lead_bytes(beginning.chars) for beginning, _ in ways]
        written = []
        for index, (_, text) in enumerate(ways):
            is_alike = any(leads[index] & other for place, other in enumerate(leads) if place != index)
            written.append(self._apart(text) if is_alike else text)
        return written

    def _apart(self, text: str) -> str:
        """A rule that xgrammar does not put in the place of a reference."""
        return self._helper(f"{text} {self._helper(chr(34) * 2)}")

    def _new_name(self) -> str:
        name = f"h{len(self._helpers)}"
        self._helpers[name] = name
        return name

    def _sequence(self, node: Node) -> str:
        if not (isinstance(node, Sequence) and node.parts):
            return self._item(node)
        written: list[str] = []
        parts = list(node.parts)
        for index, part in enumerate(parts):
            following = parts[index + 1 :]
            if isinstance(part, Repeat) and following:
                is_clear = not self._factoring.beginning(part).meets(
                    self._factoring.beginning(Sequence(tuple(following)))
                )
                if is_clear and isinstance(following[0], Literal):
                    end = self._item(following[0])
                    written.append(self._repeat(part, end))
                    return " ".join([*written, *filter(None, [self._rest(following[1:])])])
                written.append(self._repeat(part, is_clear=is_clear))
            else:
                written.append(self._item(part))
        return " ".join(written)

    def _rest(self, parts: list[Node]) -> str:
        return self._sequence(Sequence(tuple(parts))) if parts else ""

    def _item(self, node: Node) -> str:
        tick()
        match node:
            case Literal(text):
                return _literal(text)
            case CharSet(ranges):
                return _char_class(ranges)
            case Reference(name):
                return self._names[name]
            case Repeat():
                return self._repeat(node)
            case Token(part):
                return self._item(part)
            case FreeText():
                return self._free_text(node)
            case Sequence(()):
                return '""'
            case Alternatives(options) if options:
                return f"({self._alternatives(node)})"
            case Sequence():
                return f"({self._sequence(node)})"
        raise ValueError("a grammar without any text cannot be printed")

    def _free_text(self, node: FreeText) -> str:
        automaton = of_free_text(node)
        names = [f"f{len(self._helpers)}x{state}" for state in range(len(automaton.edges))]
        if repr(node) in self._helpers:
            return self._helpers[repr(node)]
        self._helpers[repr(node)] = names[0]
        for name, edges in zip(names, automaton.edges, strict=True):
            ways = [f"{self._item(CharSet(ranges))} {names[target]}" for ranges, target in edges]
            self._lines.append(f'{name} ::= {" | ".join(ways)} | ""')
        return names[0]

    def _repeat(self, node: Repeat, end: str = '""', *, is_clear: bool = True) -> str:
        """The turns and, at once with the last, `end`: then a token is known to fit where it holds the end of a string.

        `is_clear` says that no turn begins like what follows.
        """
        part, low, high = node.part, node.low, node.high
        if isinstance(part, CharSet) and high is None and low <= 1 and is_clear:
            return f"{self._item(part)}{'*' if low == 0 else '+'} {end}".removesuffix(' ""')
        last = self._any_number(part, end) if high is None else self._up_to(part, high - low, end)
        return self._exact(part, low, last)

    def _turns(self, part: Node, behind: str) -> str:
        """One turn, then `behind`."""
        return " | ".join(f"{option} {behind}".removesuffix(' ""') for option in self._ways_of_a_turn(part))

    def _ways_of_a_turn(self, part: Node) -> list[str]:
        if part not in self._turns_of:
            self._turns_of[part] = self._new_ways(part)
        return self._turns_of[part]

    def _new_ways(self, part: Node) -> list[str]:
        options = part.options if isinstance(part, Alternatives) else (part,)
        if len(options) > _MOST_OPTIONS:
            return [self._once(part)]
        if any_meet(map(self._factoring.beginning, options)):
            written = self._options(part)
            return written if len(" | ".join(written)) <= _MOST_INLINE * 2 else [self._once(part)]
        return self._either([(self._factoring.beginning(option), self._turn(option)) for option in options])

    def _turn(self, option: Node) -> str:
        if isinstance(option, Sequence) and not any(isinstance(part, Repeat) for part in option.parts):
            return " ".join(map(self._once, option.parts))
        return self._once(option)

    def _once(self, part: Node) -> str:
        """The part as one short item, to be written many times."""
        text = self._item(part)
        return (
            text if len(text) <= _MOST_REPEATED or isinstance(part, CharSet) else self._helper(self._alternatives(part))
        )

    def _any_number(self, part: Node, end: str) -> str:
        key = f"* {self._turns(part, end)}"
        if key not in self._helpers:
            name = self._helpers[key] = f"h{len(self._helpers)}"
            self._lines.append(f"{name} ::= {self._turns(part, name)} | {end}")
        return self._helpers[key]

    def _block(self, part: Node) -> str:
        name = '""'
        for _ in range(_BLOCK):
            name = self._helper(self._turns(part, name))
        return name

    def _exact(self, part: Node, count: int, behind: str) -> str:
        blocks, rest = divmod(count, _BLOCK)
        ways = self._ways_of_a_turn(part)
        if len(ways) == 1:
            behind = " ".join([*ways * rest, behind]).removesuffix(' ""')
            rest = 0
        for _ in range(rest):
            behind = self._helper(self._turns(part, behind))
        block = self._block(part) if blocks else ""
        for _ in range(blocks):
            behind = self._helper(f"{block} {behind}".removesuffix(' ""'))
        return behind

    def _up_to(self, part: Node, count: int, end: str) -> str:
        """At most `count` of the part, in as few ways as can be."""
        blocks = max(0, count - 1) // _BLOCK
        ends = [end]
        for _ in range(min(count, _BLOCK)):
            ends.append(self._helper(f"{self._turns(part, ends[-1])} | {end}"))
        name = ends[count - blocks * _BLOCK]
        block = self._block(part) if blocks else ""
        for _ in range(blocks):
            name = self._helper(f"{block} {name} | {ends[_BLOCK - 1]}")
        return name


def _lead_bytes(ranges: charsets.Ranges) -> set[int]:
    """Of the characters that are not ASCII."""
    beyond = charsets.intersection(ranges, _BEYOND_ASCII)
    return {byte for low, high in beyond for byte in range(chr(low).encode()[0], chr(high).encode()[0] + 1)}


def _char_class(ranges: charsets.Ranges) -> str:
    """A class of all but some of ASCII is written as what it leaves out: xgrammar 0.1.25 reads nothing behind a
    character that a wide range took, and other classes it cannot negate."""
    others = charsets.complement(ranges)
    if others and others[-1][1] < 0x80:
        return "[^" + "".join(_range(low, high) for low, high in others) + "]"
    return "[" + "".join(_range(*piece) for low, high in ranges for piece in _of_whole_bytes(low, high)) + "]"


def _of_whole_bytes(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The range in pieces in whose UTF-8 each byte varies alone: of U+00EA to U+672B xgrammar 0.1.32 lacks U+6600."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            yield from _of_whole_bytes(low, last)
            yield from _of_whole_bytes(last + 1, high)
            return
    if high <= 0x7F:
        yield low, high
        return
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if low | mask < high:
            if low & mask:
                yield from _of_whole_bytes(low, low | mask)
                yield from _of_whole_bytes((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _of_whole_bytes(low, (high & ~mask) - 1)
                yield from _of_whole_bytes(high & ~mask, high)
                return
    yield low, high


def _range(low: int, high: int) -> str:
    return _in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}"


def _in_class(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else _escaped(code)


def _literal(text: str) -> str:
    """In several parts where a hexadecimal digit follows what is no ASCII: xgrammar writes a grammar anew, with \\x,
    and reads any number of digits behind that."""
    parts = [""]
    for char, following in zip(text, [*text[1:], ""], strict=True):
        parts[-1] += _char(char)
        if _char(char).startswith(("\\u", "\\U")) and following in _HEX_DIGITS:
            parts.append("")
    return " ".join(f'"{part}"' for part in parts)


def _char(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    return char if char.isascii() and char.isprintable() else _escaped(ord(char))


def _escaped(code: int) -> str:
    # never \\x: xgrammar takes any number of hexadecimal digits behind it
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
