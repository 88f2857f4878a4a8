"""Sets of characters as sorted, disjoint, inclusive ranges of code points. Surrogates are no characters."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

Ranges = tuple[tuple[int, int], ...]

_SURROGATES: Final = (0xD800, 0xDFFF)
ANY: Final[Ranges] = ((0, 0xD7FF), (0xE000, 0x10FFFF))


def normalized(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same characters as sorted, disjoint ranges that do not touch, without surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(_without_surrogates(ranges)):
        if merged and low <= merged[-1][1] + 1 and not (merged[-1][1] < 0xD800 <= low):
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _without_surrogates(ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    for low, high in ranges:
        if high < _SURROGATES[0] or low > _SURROGATES[1]:
            if low <= high:
                yield low, high
            continue
        if low < _SURROGATES[0]:
            yield low, _SURROGATES[0] - 1
        if high > _SURROGATES[1]:
            yield _SURROGATES[1] + 1, high


def of(chars: str) -> Ranges:
    """The characters of `chars`."""
    return normalized((ord(char), ord(char)) for char in chars)


def union(*sets: Ranges) -> Ranges:
    return normalized(span for ranges in sets for span in ranges)


def complement(ranges: Ranges) -> Ranges:
    """Every other character."""
    result, start = [], 0
    for low, high in ranges:
        result.append((start, low - 1))
        start = high + 1
    result.append((start, 0x10FFFF))
    return normalized(result)


def intersection(one: Ranges, other: Ranges) -> Ranges:
    result, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            result.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


def difference(one: Ranges, other: Ranges) -> Ranges:
    return intersection(one, complement(other))


def contains(ranges: Ranges, char: str) -> bool:
    code = ord(char)
    return any(low <= code <= high for low, high in ranges)


def partition(sets: Iterable[Ranges]) -> list[Ranges]:
    """The coarsest classes of characters that every set is a union of. Characters in no set are in no class."""
    distinct = list(dict.fromkeys(sets))
    starts: dict[int, list[int]] = {}
    for index, ranges in enumerate(distinct):
        for low, high in ranges:
            starts.setdefault(low, []).append(index)
            starts.setdefault(high + 1, []).append(~index)
    classes: dict[frozenset[int], list[tuple[int, int]]] = {}
    inside: set[int] = set()
    edges = sorted(starts)
    for low, end in pairwise([*edges, 0x110000]):
        for change in starts[low]:  # an end and a start at one place are of different sets: ranges do not touch
            if change >= 0:
                inside.add(change)
            else:
                inside.discard(~change)
        if inside:
            classes.setdefault(frozenset(inside), []).append((low, end - 1))
    return [normalized(ranges) for ranges in classes.values()]
