"""Numbers between bounds, digit by digit. Written without exponent, in at most 15 digits: different ones are then
different as floats too, so that a bound that must not be reached is not reached by rounding."""

from decimal import Decimal
from functools import cache
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.nodes import EMPTY, NOTHING, Node, chars, choice, join, repeated, text

FLOAT_DIGITS: Final = 15
_ANY_DIGIT: Final = chars(charsets.of("0123456789"))

_Bound = tuple[Decimal, bool]
"""A number, and whether it is itself within."""


def integers(low: int | None, high: int | None) -> Node:
    """Integers from `low` to `high`, both included."""
    largest = 10**limits.INTEGER_DIGITS - 1
    low = -largest if low is None else max(low, -largest)
    high = largest if high is None else min(high, largest)
    positive = _naturals(max(low, 0), high) if high >= 0 else NOTHING
    negative = join([text("-"), _naturals(max(1, -high), -low)]) if low < 0 else NOTHING
    return choice([positive, negative])


def _naturals(low: int, high: int) -> Node:
    ways = []
    for length in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        most = min(high, 10**length - 1)
        if least <= most:
            ways.append(_same_length(str(least), str(most)))
    return choice(ways)


def _same_length(low: str, high: str) -> Node:
    """Digits between two of the same length."""
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeated(_ANY_DIGIT, len(low), len(low))
    first, last = low[0], high[0]
    if first == last:
        return join([text(first), _same_length(low[1:], high[1:])])
    rest = len(low) - 1
    return choice(
        [
            join([text(first), _same_length(low[1:], "9" * rest)]),
            join([_digits(int(first) + 1, int(last) - 1), repeated(_ANY_DIGIT, rest, rest)]),
            join([text(last), _same_length("0" * rest, high[1:])]),
        ]
    )


def _digits(low: int, high: int) -> Node:
    return chars(charsets.normalized([(0x30 + low, 0x30 + high)])) if low <= high else NOTHING


def numbers(low: _Bound | None, high: _Bound | None) -> Node:
    """Decimal numbers between the bounds. Raises ValueError for bounds of too many digits to be compared exactly."""
    for bound in (low, high):
        if bound is not None and not bound[1] and len(bound[0].as_tuple().digits) > FLOAT_DIGITS:
            raise ValueError(f"a bound with more than {FLOAT_DIGITS} digits")
    zero = (Decimal(0), True)
    positive = NOTHING
    if high is None or high[0] > 0 or (high[0] == 0 and high[1]):
        positive = _magnitudes(zero if low is None or low[0] < 0 else low, high)
    negative = NOTHING
    if low is None or low[0] < 0:
        above_zero = (Decimal(0), False)
        least = above_zero if high is None or high[0] >= 0 else (-high[0], high[1])
        negative = join([text("-"), _magnitudes(least, None if low is None else (-low[0], low[1]))])
    return choice([positive, negative])


def _magnitudes(low: _Bound, high: _Bound | None) -> Node:
    """Numbers that are not negative, with or without a fraction."""
    least_whole = int(low[0])
    largest = 10**FLOAT_DIGITS - 1
    most_whole = largest if high is None else min(int(high[0]), largest)
    ways = []
    edges = sorted({least_whole, most_whole})
    for whole in edges:
        if not least_whole <= whole <= most_whole:
            continue
        above = (_fraction_of(low[0]), low[1]) if whole == least_whole else None
        below = (_fraction_of(high[0]), high[1]) if high is not None and whole == int(high[0]) else None
        ways.append(join([text(str(whole)), _fraction(above, below, FLOAT_DIGITS - len(str(whole)))]))
    start = least_whole + 1
    while start < most_whole:
        end = min(most_whole - 1, 10 ** len(str(start)) - 1)
        ways.append(join([_naturals(start, end), _fraction(None, None, FLOAT_DIGITS - len(str(start)))]))
        start = end + 1
    return choice(ways)


def _fraction_of(value: Decimal) -> str:
    return format(value, "f").partition(".")[2].rstrip("0")


def _fraction(low: tuple[str, bool] | None, high: tuple[str, bool] | None, digits: int) -> Node:
    """Nothing, or a point and at most so many digits, between two fractions."""
    bare = EMPTY if _may_end(low, high) else NOTHING
    if digits == 0:
        return bare
    behind = choice(
        join([group, _fraction_digits(following_low, following_high, digits - 1)])
        for group, following_low, following_high in _next_digits(low, high)
    )
    return choice([bare, join([text("."), behind])])


@cache
def _fraction_digits(low: tuple[str, bool] | None, high: tuple[str, bool] | None, digits: int) -> Node:
    if low is None and high is None:
        return repeated(_ANY_DIGIT, 0, digits)
    ways = [EMPTY] if _may_end(low, high) else []
    if digits:
        ways += [
            join([group, _fraction_digits(following_low, following_high, digits - 1)])
            for group, following_low, following_high in _next_digits(low, high)
        ]
    return choice(ways)


def _may_end(low: tuple[str, bool] | None, high: tuple[str, bool] | None) -> bool:
    """Whether only zeros may follow."""
    return (low is None or low == ("", True)) and (high is None or high[1] or high[0] != "")


def _next_digits(
    low: tuple[str, bool] | None, high: tuple[str, bool] | None
) -> list[tuple[Node, tuple[str, bool] | None, tuple[str, bool] | None]]:
    """Sets of digits that may come next, with what bounds the digits behind."""
    groups: dict[tuple[tuple[str, bool] | None, tuple[str, bool] | None], list[int]] = {}
    lowest = 0 if low is None else int(low[0][:1] or "0")
    highest = 9 if high is None else int(high[0][:1] or "0")
    for digit in range(lowest, highest + 1):
        following_low = (low[0][1:], low[1]) if low is not None and digit == lowest else None
        following_high = (high[0][1:], high[1]) if high is not None and digit == highest else None
        groups.setdefault((None if following_low == ("", True) else following_low, following_high), []).append(digit)
    return [(_digits(digits[0], digits[-1]), *bounds) for bounds, digits in groups.items()]


def multiples(of: int, low: int | None, high: int | None) -> Node:
    """Integer multiples of `of` between `low` and `high`. Raises ValueError where there are too many and no pattern."""
    if of == 1:
        return integers(low, high)
    if of >= 10**limits.INTEGER_DIGITS:
        raise ValueError(f"multiples of a number with more than {limits.INTEGER_DIGITS} digits")
    zeros = len(str(of)) - len(str(of).rstrip("0"))
    if str(of).strip("0") == "1":
        bounds = [None if low is None else -(-low // of), None if high is None else high // of]
        largest = 10 ** (limits.INTEGER_DIGITS - zeros) - 1
        least = -largest if bounds[0] is None else max(bounds[0], -largest)
        most = largest if bounds[1] is None else min(bounds[1], largest)
        shifted = join([integers_without_zero(least, most), text("0" * zeros)])
        return choice([shifted, text("0") if least <= 0 <= most else NOTHING])
    if low is None or high is None or (high - low) // of >= limits.MAX_ENUM_VALUES:
        raise ValueError(
            f"multiples of {of} without a minimum and a maximum that leave at most {limits.MAX_ENUM_VALUES} of them"
        )
    return choice(text(str(value)) for value in range(-(-low // of) * of, high + 1, of))


def integers_without_zero(low: int, high: int) -> Node:
    """Integers from `low` to `high` but 0."""
    return choice([integers(low, min(high, -1)), integers(max(low, 1), high)])
