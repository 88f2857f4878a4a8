"""Regular expressions: the part that JSON Schema, Python and RE2 agree on, as a grammar.

Classes, escapes (\\d \\w \\s are of ASCII; their opposites leave out what any dialect counts in), groups, alternation,
quantifiers (lazy ones stand for the same texts), `^` and `$` at the ends. Look-around, back references, flags, word
boundaries and Unicode properties are refused by name.
"""

import unicodedata
from functools import cache
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.charsets import Ranges
from chatfleet.chat.grammar.cursor import Cursor
from chatfleet.chat.grammar.nodes import (
    EMPTY,
    NOTHING,
    Grammar,
    Node,
    chars,
    checked,
    choice,
    join,
    repeated,
    text,
    without_nul,
)
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter

_ANY_CHAR: Final = charsets.complement(charsets.of("\n\r\u2028\u2029"))
_DIGITS: Final = charsets.of("0123456789")
_WORD: Final = charsets.normalized([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_SPACE: Final = charsets.of(" \t\n\r\f\v")
_ANY_SPACE: Final = charsets.normalized(
    [(0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)]
    + [(0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)
_CONTROL_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_MAX_COUNT_DIGITS: Final = 9
_GROUPS_REFUSED: Final = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "atomic groups",
    "(?P=": "back references",
    "(?(": "conditions",
}


@cache
def _opposite(letter: str) -> Ranges:
    """What \\D, \\W and \\S stand for in every dialect, Unicode's digits and letters being left out."""
    if letter == "S":
        return charsets.complement(_ANY_SPACE)
    counted_in = (lambda char: unicodedata.category(char) == "Nd") if letter == "D" else (lambda char: char.isalnum())
    known = charsets.union(
        _DIGITS if letter == "D" else _WORD,
        charsets.normalized(
            (code, code) for code in range(0x80, 0x110000) if not 0xD800 <= code <= 0xDFFF and counted_in(chr(code))
        ),
    )
    return charsets.complement(known)


_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_WIDEST: Final = {"d": "D", "w": "W", "s": "S"}


def from_regex(pattern: str, *, param: str | None) -> Grammar:
    """Texts that the whole of `pattern` matches. Raises InvalidRequest for what is no regex or too large, and
    UnsupportedParameter for what no grammar can honour."""
    node = full_match(pattern, param=param, where="the regex")
    if node == NOTHING:
        raise InvalidRequest("No text can match this regex.", param=param)
    return without_nul(checked(Grammar(node), param=param), param=param)


def full_match(pattern: str, *, param: str | None, where: str) -> Node:
    """The node of texts that the whole of `pattern` matches; `where` names it in messages."""
    return choice(node for node, _, _ in _Parser(pattern, param, where).parse())


def search(pattern: str, *, param: str | None, where: str) -> Node:
    """The node of texts in which `pattern` is found."""
    free = repeated(chars(charsets.ANY))
    return choice(
        join([EMPTY if at_start else free, node, EMPTY if at_end else free])
        for node, at_start, at_end in _Parser(pattern, param, where).parse()
    )


def _is_count(digits: str) -> bool:
    return digits.isascii() and digits.isdecimal()


def _count(digits: str) -> int:
    """Digits as a number; one beyond all limits where there are so many that to read them would take long."""
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= _MAX_COUNT_DIGITS else limits.MAX_REPEAT + 1


class _Parser(Cursor):
    def __init__(self, pattern: str, param: str | None, where: str) -> None:
        super().__init__(pattern)
        self._param = param
        self._where = where
        self._depth = 0
        if len(pattern) > limits.MAX_REGEX_CHARS:
            raise InvalidRequest(
                f"In {where}: it has {len(pattern)} characters, of at most {limits.MAX_REGEX_CHARS}.", param=param
            )

    def parse(self) -> list[tuple[Node, bool, bool]]:
        """The alternatives, each with whether it holds on to the start and to the end."""
        result = []
        while True:
            at_start = self._take("^")
            while self._take("^"):
                pass
            node = self._concatenation()
            at_end = False
            while self._take("$"):
                at_end = True
            result.append((node, at_start, at_end))
            if self._place == len(self._source):
                return result
            if not self._take("|"):
                raise self._wrong("unbalanced `)`" if self._peek() == ")" else "something behind `$`")

    def _wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"In {self._where}, at character {self._place}: {what}.", param=self._param)

    def _refused(self, what: str) -> UnsupportedParameter:
        return UnsupportedParameter(
            f"In {self._where}, at character {self._place}: {what} cannot be honoured by a grammar.",
            param=self._param,
        )

    def _alternation(self) -> Node:
        options = [self._concatenation()]
        while self._take("|"):
            options.append(self._concatenation())
        return choice(options)

    def _concatenation(self) -> Node:
        parts = []
        while self._peek() not in ("", "|", ")", "$"):
            parts.append(self._quantified())
        if self._peek() == "$" and self._depth:
            raise self._refused("`$` within a group")
        return join(parts)

    def _quantified(self) -> Node:
        tick()
        node = self._atom()
        counts = self._quantifier()
        if counts is None:
            return node
        if self._take("+"):
            raise self._refused("a possessive quantifier")
        self._take("?")
        if self._peek() in ("*", "+") or (self._peek() == "{" and self._quantifier() is not None):
            raise self._wrong("a quantifier behind a quantifier")
        return repeated(node, *counts)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        end = self._source.find("}", self._place)
        if self._peek() != "{" or end < 0:
            return None
        low, comma, high = self._source[self._place + 1 : end].partition(",")
        if not low and _is_count(high):
            raise self._refused("`{,n}`, which dialects read differently (write `{0,n}`),")
        if not _is_count(low) or (high and not _is_count(high)):
            return None
        self._place = end + 1
        least = _count(low)
        most = least if not comma else _count(high) if high else None
        if max(least, most or 0) > limits.MAX_REPEAT:
            raise self._wrong(f"a count over {limits.MAX_REPEAT}")
        if most is not None and most < least:
            raise self._wrong("a count that ends before it begins")
        return least, most

    def _atom(self) -> Node:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return chars(self._char_class())
            case ".":
                return chars(_ANY_CHAR)
            case "\\":
                ranges = self._escape(in_class=False)
                return chars(ranges)
            case "*" | "+" | "?":
                raise self._wrong(f"nothing for `{char}` to repeat")
            case "^":
                raise self._refused("`^` that is not at the beginning")
        return text(self._checked(char))

    def _checked(self, char: str) -> str:
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise self._refused("half of a surrogate pair")
        return char

    def _group(self) -> Node:
        for opening, what in _GROUPS_REFUSED.items():
            if self._source.startswith(opening, self._place - 1):
                raise self._refused(what)
        if self._take("?P<") or self._take("?<"):
            end = self._source.find(">", self._place)
            if end < 0:
                raise self._wrong("a group's name without its end")
            self._place = end + 1
        elif not self._take("?:") and self._peek() == "?":
            raise self._refused("flags such as `(?i)`")
        self._depth += 1
        if self._depth > limits.MAX_DEPTH:
            raise self._wrong(f"groups nested deeper than {limits.MAX_DEPTH}")
        node = self._alternation()
        if not self._take(")"):
            raise self._wrong("a `(` without its `)`")
        self._depth -= 1
        return node

    def _escape(self, *, in_class: bool) -> Ranges:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in "DWS":
            return _opposite(char)
        if char in _CONTROL_ESCAPES and not (char == "0" and self._peek().isdecimal()):
            return charsets.of(_CONTROL_ESCAPES[char])
        if char == "b" and in_class:
            return charsets.of("\b")
        if char in "bBAZzG":
            raise self._refused(f"`\\{char}`")
        if char in "pP":
            raise self._refused("a Unicode property")
        if char.isdecimal() or char == "k":
            raise self._refused("a back reference")
        if char in "xuU":
            return self._code_point({"x": 2, "u": 4, "U": 8}[char])
        if char.isalpha() and char.isascii():
            raise self._wrong(f"`\\{char}` is no escape")
        return charsets.of(self._checked(char))

    def _code_point(self, digits: int) -> Ranges:
        written = self._source[self._place : self._place + digits]
        try:
            code = int(written, 16) if len(written) == digits and written.isalnum() else 0x110000
        except ValueError:
            code = 0x110000
        if code > 0x10FFFF:
            raise self._wrong("an escape without its hexadecimal digits")
        self._place += digits
        return charsets.of(self._checked(chr(code)))

    def _char_class(self) -> Ranges:
        is_negated = self._take("^")
        taken: list[Ranges] = []
        while self._peek() != "]" or not taken:
            if self._peek() == "]" and not taken:
                raise self._refused("an empty class, or one that begins with `]`")
            low = self._member(is_negated=is_negated)
            following = self._source[self._place : self._place + 2]
            if following[:1] == "-" and following[1:] not in ("]", ""):
                self._place += 1
                high = self._member(is_negated=is_negated)
                bounds = [ranges[0] for ranges in (low, high)]
                if any(len(ranges) != 1 or ranges[0][0] != ranges[0][1] for ranges in (low, high)):
                    raise self._wrong("a range whose ends are not characters")
                if bounds[0][0] > bounds[1][0]:
                    raise self._wrong("a range that ends before it begins")
                taken.append(charsets.normalized([(bounds[0][0], bounds[1][0])]))
            else:
                taken.append(low)
        self._place += 1
        together = charsets.union(*taken)
        return charsets.complement(together) if is_negated else together

    def _member(self, *, is_negated: bool) -> Ranges:
        """One character or class in brackets. In negated ones a class is as wide as any dialect has it."""
        char = self._next()
        if char == "[" and self._peek() in (":", "."):
            raise self._refused("a POSIX class")
        if char != "\\":
            return charsets.of(self._checked(char))
        letter = self._peek()
        if is_negated and letter in _WIDEST:
            self._place += 1
            return charsets.complement(_opposite(_WIDEST[letter]))
        if is_negated and letter in ("D", "W", "S"):
            self._place += 1
            return charsets.complement(_CLASSES[letter.lower()])
        return self._escape(in_class=True)
