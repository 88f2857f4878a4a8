"""Grammars as llama.cpp and vLLM take them: GBNF, which xgrammar's EBNF is too but for its macros.

`root ::= ...`, literals, classes, groups, `?`, `*`, `+`, `{m,n}`, `#` comments. A rule that begins with itself is
written anew as a repetition; one that does so over others is refused.
"""

import re
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.charsets import Ranges
from chatfleet.chat.grammar.cursor import Cursor
from chatfleet.chat.grammar.finishing import finished
from chatfleet.chat.grammar.nodes import (
    Grammar,
    Node,
    Reference,
    Repeat,
    chars,
    checked,
    choice,
    join,
    references,
    repeated,
    text,
    without_nul,
)
from chatfleet.core.errors import InvalidRequest

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_COUNT: Final = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(,)?[ \t]*([0-9]{1,9})?[ \t]*\}")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b", "a": "\a", "e": "\x1b", "0": "\0"}


def from_ebnf(source: str, *, param: str | None) -> Grammar:
    """The grammar that `source` writes. Raises InvalidRequest with the line and what is wrong."""
    if len(source) > limits.MAX_SOURCE_BYTES:
        raise InvalidRequest(
            f"The grammar has {len(source)} characters, of at most {limits.MAX_SOURCE_BYTES}.", param=param
        )
    rules = _Parser(source, param).rules()
    grammar = without_nul(checked(Grammar(Reference("root"), rules), param=param), param=param)
    return checked(finished(grammar, param=param), param=param)


class _Parser(Cursor):
    def __init__(self, source: str, param: str | None) -> None:
        super().__init__(source)
        self._param = param
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        first_use: dict[str, int] = {}
        self._skip()
        while self._place < len(self._source):
            tick()
            start = self._place
            name = self._name("a rule's name")
            self._skip()
            if not self._take("::="):
                raise self._wrong(f"`::=` must come behind the rule's name `{name}`")
            if name in rules:
                raise self._wrong(f"the rule `{name}` is there twice", start)
            self._skip()
            rules[name] = self._alternatives()
            for used in references(rules[name]):
                first_use.setdefault(used, start)
        if "root" not in rules:
            raise InvalidRequest("The grammar has no rule `root`, with which it would begin.", param=self._param)
        for used, start in first_use.items():
            if used not in rules:
                raise self._wrong(f"the rule `{used}` is used and not defined", start)
        return rules

    def _wrong(self, what: str, place: int | None = None) -> InvalidRequest:
        line = self._source.count("\n", 0, self._place if place is None else place) + 1
        return InvalidRequest(f"Line {line} of the grammar: {what}.", param=self._param)

    def _skip(self) -> None:
        match = _BLANK.match(self._source, self._place)
        assert match is not None  # it matches nothing, too
        self._place = match.end()

    def _name(self, what: str) -> str:
        match = _NAME.match(self._source, self._place)
        if match is None:
            raise self._wrong(f"{what} was expected, not {self._peek() or 'the end'!r}")
        self._place = match.end()
        return match.group()

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            self._skip()
            options.append(self._sequence())
        return choice(options)

    def _sequence(self) -> Node:
        parts = []
        while self._peek() not in ("", "|", ")") and not self._at_rule():
            parts.append(self._counted())
            self._skip()
        if self._peek() == ")" and not self._depth:
            raise self._wrong("a `)` without its `(`")
        return join(parts)

    def _at_rule(self) -> bool:
        """Whether the next rule begins here."""
        match = _NAME.match(self._source, self._place)
        if match is None:
            return False
        blank = _BLANK.match(self._source, match.end())
        return blank is not None and self._source.startswith("::=", blank.end())

    def _counted(self) -> Node:
        tick()
        node = self._atom()
        low: int
        high: int | None
        while True:
            if self._take("*"):
                low, high = 0, None
            elif self._take("+"):
                low, high = 1, None
            elif self._take("?"):
                low, high = 0, 1
            elif self._peek() == "{":
                low, high = self._count()
            else:
                return node
            # What a rule stands for is known at the end only: a repetition of one that may be empty is cleared then.
            node = Repeat(node, low, high) if isinstance(node, Reference) else repeated(node, low, high)

    def _count(self) -> tuple[int, int | None]:
        match = _COUNT.match(self._source, self._place)
        if match is None:
            raise self._wrong("counts are written {m}, {m,} or {m,n}")
        self._place = match.end()
        low = int(match[1])
        high = int(match[3]) if match[3] else None if match[2] else low
        if max(low, high or 0) > limits.MAX_REPEAT:
            raise self._wrong(f"a count over {limits.MAX_REPEAT}")
        if high is not None and high < low:
            raise self._wrong("a count that ends before it begins")
        return low, high

    def _atom(self) -> Node:
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return chars(self._char_class())
        if char == ".":
            self._place += 1
            return chars(charsets.ANY)
        if char == "(":
            return self._group()
        return Reference(self._name("a rule, a literal, a class or a group"))

    def _group(self) -> Node:
        start = self._place
        self._place += 1
        self._depth += 1
        if self._depth > limits.MAX_DEPTH:
            raise self._wrong(f"groups are nested deeper than {limits.MAX_DEPTH}")
        self._skip()
        node = self._alternatives()
        if not self._take(")"):
            raise self._wrong("a `(` without its `)`", start)
        self._depth -= 1
        return node

    def _literal(self) -> Node:
        start = self._place
        self._place += 1
        read = []
        while not self._take('"'):
            if self._peek() in ("", "\n"):
                raise self._wrong('a `"` without its end', start)
            tick()
            read.append(self._char())
        return text("".join(read))

    def _char_class(self) -> Ranges:
        start = self._place
        self._place += 1
        is_negated = self._take("^")
        taken: list[Ranges] = []
        while not self._take("]"):
            if self._peek() in ("", "\n"):
                raise self._wrong("a `[` without its `]`", start)
            low = high = self._char()
            following = self._source[self._place : self._place + 2]
            if following[:1] == "-" and following[1:] != "]":
                self._place += 1
                high = self._char()
            if high < low:
                raise self._wrong("a range that ends before it begins")
            taken.append(charsets.normalized([(ord(low), ord(high))]))
        together = charsets.union(*taken)
        return charsets.complement(together) if is_negated else together

    def _char(self) -> str:
        """One character, written as it is or escaped."""
        char = self._next()
        if char == "\\":
            letter = self._next()
            digits = {"x": 2, "u": 4, "U": 8}.get(letter)
            if digits is not None:
                char = self._code_point(digits)
            elif letter in _ESCAPES:
                return _ESCAPES[letter]
            elif letter.isalnum():
                raise self._wrong(f"`\\{letter}` is no escape")
            else:
                return letter
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise self._wrong("half of a surrogate pair is no character")
        return char

    def _code_point(self, digits: int) -> str:
        written = self._source[self._place : self._place + digits]
        if re.fullmatch(f"[0-9A-Fa-f]{{{digits}}}", written) is None or int(written, 16) > 0x10FFFF:
            raise self._wrong(f"an escape needs {digits} hexadecimal digits")
        self._place += digits
        return chr(int(written, 16))
