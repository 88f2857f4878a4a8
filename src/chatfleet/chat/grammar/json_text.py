"""How JSON is written here: at most one space behind ":" and ",", none elsewhere, and numbers of bounded length."""

import json
from collections.abc import Iterable
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.finishing import finished
from chatfleet.chat.grammar.nodes import (
    Grammar,
    Node,
    Reference,
    chars,
    choice,
    join,
    optional,
    repeated,
    text,
    token,
)

_CONTROLS: Final = ((0x00, 0x1F),)
_SHORT: Final = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
PLAIN: Final = charsets.complement(charsets.union(_CONTROLS, charsets.of('"\\')))
"""Characters that are written as they are in a JSON string."""

_HEX = charsets.union(charsets.of("0123456789abcdefABCDEF"))
_HEX_DIGIT: Final = chars(_HEX)


def _u_escape() -> Node:
    """\\uXXXX: any character but a surrogate, or a whole pair of them."""
    no_d = chars(charsets.difference(_HEX, charsets.of("dD")))
    d, low_half = chars(charsets.of("dD")), chars(charsets.of("01234567"))
    single = choice([join([no_d, repeated(_HEX_DIGIT, 3, 3)]), join([d, low_half, repeated(_HEX_DIGIT, 2, 2)])])
    high = join([d, chars(charsets.of("89abAB")), repeated(_HEX_DIGIT, 2, 2)])
    low = join([d, chars(charsets.of("cdefCDEF")), repeated(_HEX_DIGIT, 2, 2)])
    return join([text("u"), choice([single, join([high, text("\\u"), low])])])


_ESCAPES: Final = choice([chars(charsets.of("".join(_SHORT.values()) + "/")), _u_escape()])
STRING_CHAR: Final = choice([chars(PLAIN), join([text("\\"), _ESCAPES])])
"""One character of a JSON string, however it may be written."""

COMMA: Final = token(join([text(","), optional(text(" "))]))
COLON: Final = join([text(":"), optional(text(" "))])


def quoted(inner: Node) -> Node:
    """A JSON string of what is written `inner` between its quotes."""
    return token(join([text('"'), inner, text('"')]))


ANY_STRING: Final = quoted(repeated(STRING_CHAR))
TRUE, FALSE, NULL = (token(text(word)) for word in ("true", "false", "null"))

_DIGIT: Final = chars(charsets.of("0123456789"))
_NONZERO: Final = chars(charsets.of("123456789"))


def _integer() -> Node:
    nonzero = join([_NONZERO, repeated(_DIGIT, 0, limits.INTEGER_DIGITS - 1)])
    return choice([text("0"), join([optional(text("-")), nonzero])])


def _number() -> Node:
    whole = choice([text("0"), join([_NONZERO, repeated(_DIGIT, 0, limits.INTEGER_DIGITS - 1)])])
    fraction = join([text("."), repeated(_DIGIT, 1, limits.FRACTION_DIGITS)])
    exponent = join(
        [chars(charsets.of("eE")), optional(chars(charsets.of("+-"))), repeated(_DIGIT, 1, limits.EXPONENT_DIGITS)]
    )
    return join([optional(text("-")), whole, optional(fraction), optional(exponent)])


INTEGER: Final = token(_integer())
NUMBER: Final = token(_number())


def encoded_char(char: str) -> str:
    """A character as it stands in a JSON string, in the one way that conditions on strings allow."""
    if char in _SHORT:
        return "\\" + _SHORT[char]
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 else char


def encoded(value: str) -> str:
    """The text as it stands in a JSON string."""
    return "".join(encoded_char(char) for char in value)


def encoded_set(ranges: charsets.Ranges) -> Node:
    """One character of the set as it stands in a JSON string."""
    plain = charsets.intersection(ranges, PLAIN)
    escaped = [chr(code) for low, high in charsets.difference(ranges, PLAIN) for code in range(low, high + 1)]
    short = "".join(_SHORT[char] for char in escaped if char in _SHORT)
    ways = [chars(plain), join([text("\\"), chars(charsets.of(short))])]
    for sixteen in ("0", "1"):
        last = "".join(
            f"{ord(char):02x}"[1] for char in escaped if char not in _SHORT and f"{ord(char):02x}"[0] == sixteen
        )
        ways.append(join([text(f"\\u00{sixteen}"), chars(charsets.of(last))]))
    return choice(ways)


def constant(value: object) -> Node:
    """One JSON value, spaces within it as elsewhere."""
    match value:
        case str():
            return token(text(f'"{encoded(value)}"'))
        case dict():
            return braced("{", (join([_key(key), constant(item)]) for key, item in value.items()), "}")
        case list():
            return braced("[", (constant(item) for item in value), "]")
        case _:
            return token(text(json.dumps(value)))


def _key(name: str) -> Node:
    return token(join([text(f'"{encoded(name)}"'), COLON]))


def braced(opening: str, items: Iterable[Node], closing: str) -> Node:
    """All the items between brackets."""
    parts: list[Node] = [token(text(opening))]
    for index, item in enumerate(items):
        parts += [item] if index == 0 else [COMMA, item]
    return join([*parts, token(text(closing))])


def listed(opening: str, item: Node, closing: str) -> Node:
    """Any number of the item between brackets."""
    inner = join([item, repeated(join([COMMA, item]))])
    return join([token(text(opening)), optional(inner), token(text(closing))])


def any_key(name: Node) -> Node:
    """A key, which is written `name` with its quotes, and its colon."""
    return token(join([name, COLON]))


VALUE: Final = "json"
"""Name of the rule of any JSON value, of which `VALUE_RULES` are the rules."""
VALUE_RULES: Final[dict[str, Node]] = {
    "json": choice([ANY_STRING, NUMBER, TRUE, FALSE, NULL, Reference("json_object"), Reference("json_array")]),
    "json_object": listed(
        "{", join([token(join([text('"'), repeated(STRING_CHAR), text('"'), COLON])), Reference("json")]), "}"
    ),
    "json_array": listed("[", Reference("json"), "]"),
}


def json_object() -> Grammar:
    """Any JSON object."""
    return finished(Grammar(Reference("json_object"), VALUE_RULES), param=None)
