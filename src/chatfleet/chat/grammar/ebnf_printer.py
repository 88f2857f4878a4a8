"""A grammar as xgrammar's EBNF.

Repetition is written as rules that end with themselves. xgrammar 0.2.8 (and 0.1.25) reads `(a | b c)*` and `a{0,64}`
too, but then finds out anew at every token what may follow: 90 to 300 ms a token with 128 000 tokens, where
the rules below take 0.1 ms.
"""

from typing import Final

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.automata import of_free_text
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
"""Counts beyond are made of blocks of so many. A rule for each count would be faster to follow (0.1 ms a token, against
20), but takes 75 ms each to compile: 50 s for {0,700}, against 2.6 s."""


def to_ebnf(grammar: Grammar) -> str:
    """The grammar in xgrammar's syntax; its root is the rule `root`."""
    return _Printer(grammar).text()


class _Printer:
    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._names = {name: f"r{index}" for index, name in enumerate(grammar.rules)}
        self._lines: list[str] = []
        self._helpers: dict[str, str] = {}

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
        if isinstance(node, Alternatives) and node.options:
            return " | ".join(self._sequence(option) for option in node.options)
        return self._sequence(node)

    def _sequence(self, node: Node) -> str:
        if isinstance(node, Sequence) and node.parts:
            return " ".join(self._item(part) for part in node.parts)
        return self._item(node)

    def _item(self, node: Node) -> str:
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

    def _repeat(self, node: Repeat) -> str:
        if isinstance(node.part, CharSet) and node.high is None and node.low <= 1:
            return self._item(node.part) + ("*" if node.low == 0 else "+")
        exact = self._exact(node.part, node.low)
        if node.high is None:
            return f"{exact} {self._star(node.part)}".strip()
        return f"{exact} {self._up_to(node.part, node.high - node.low)}".strip()

    def _star(self, part: Node) -> str:
        if isinstance(part, CharSet):
            return self._item(part) + "*"
        key = f"* {self._once(part)}"
        if key in self._helpers:
            return self._helpers[key]
        name = self._helpers[key] = f"h{len(self._helpers)}"
        options = part.options if isinstance(part, Alternatives) else (part,)
        again = " | ".join(f"{self._sequence(option)} {name}" for option in options)
        self._lines.append(f'{name} ::= {again} | ""')
        return name

    def _once(self, part: Node) -> str:
        """The part as one short item, to be written many times."""
        text = self._item(part)
        return text if len(text) <= 12 else self._helper(self._alternatives(part))

    def _exact(self, part: Node, count: int) -> str:
        if count == 0:
            return ""
        once = self._once(part)
        blocks, rest = divmod(count, _BLOCK)
        block = [self._helper(" ".join([once] * _BLOCK))] if blocks else []
        return " ".join(block * blocks + [once] * rest)

    def _up_to(self, part: Node, count: int) -> str:
        """At most `count` of the part, in as few ways as can be."""
        if count == 0:
            return ""
        once = self._once(part)
        blocks, rest = divmod(count, _BLOCK)
        tails = [""]
        for _ in range(min(count, _BLOCK - 1)):
            tails.append(self._helper(f"{once} {tails[-1]}".strip() + ' | ""'))
        if not blocks:
            return tails[rest]
        block = self._helper(" ".join([once] * _BLOCK))
        name = tails[rest]
        for _ in range(blocks):
            name = self._helper(f"{block} {name}".strip() + f" | {tails[-1]}")
        return name


def _char_class(ranges: charsets.Ranges) -> str:
    """A class of all but some of ASCII is written as what it leaves out: xgrammar 0.1.25 reads nothing behind a
    character that a wide range took, and other classes it cannot negate."""
    others = charsets.complement(ranges)
    if others and others[-1][1] < 0x80:
        return "[^" + "".join(_range(low, high) for low, high in others) + "]"
    return "[" + "".join(_range(low, high) for low, high in ranges) + "]"


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
