"""Deterministic automata over characters: what several conditions on one text leave, and text without some strings."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.components import components
from chatfleet.chat.grammar.free_text import free_text_edges
from chatfleet.chat.grammar.matching import Matcher, TooManyWays
from chatfleet.chat.grammar.nodes import (
    EMPTY,
    NOTHING,
    FreeText,
    Grammar,
    Node,
    Reference,
    chars,
    choice,
    join,
    repeated,
)

_MAX_NESTING: Final = 16


class TooLarge(Exception):
    """The automaton would have more states than `limits.MAX_AUTOMATON_STATES`, or take too long to make."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """States from 0, where reading begins. Each state's edges are of disjoint sets; what no edge takes is refused."""

    edges: list[list[tuple[charsets.Ranges, int]]]
    accepting: list[bool]


_State = TypeVar("_State")


def _explored(
    start: _State,
    edges_of: Callable[[_State], Iterable[tuple[charsets.Ranges, _State]]],
    accepts: Callable[[_State], bool],
) -> Automaton:
    deadline = time.thread_time() + limits.MAX_COMPILE_S
    numbers = {start: 0}
    states = [start]
    edges: list[list[tuple[charsets.Ranges, int]]] = []
    for state in states:  # grows as it goes
        if time.thread_time() > deadline:
            raise TooLarge
        row: dict[int, charsets.Ranges] = {}
        for ranges, target in edges_of(state):
            if target not in numbers:
                numbers[target] = len(states)
                states.append(target)
                if len(states) > limits.MAX_AUTOMATON_STATES:
                    raise TooLarge
            number = numbers[target]
            row[number] = charsets.union(row.get(number, ()), ranges)
        edges.append([(ranges, number) for number, ranges in row.items()])
    return _useful(Automaton(edges, [accepts(state) for state in states]))


def _useful(automaton: Automaton) -> Automaton:
    """Without edges to states from which no text can end."""
    useful = {state for state, accepts in enumerate(automaton.accepting) if accepts}
    sources: dict[int, list[int]] = {}
    for state, row in enumerate(automaton.edges):
        for _, target in row:
            sources.setdefault(target, []).append(state)
    pending = list(useful)
    while pending:
        for source in sources.get(pending.pop(), ()):
            if source not in useful:
                useful.add(source)
                pending.append(source)
    edges = [[edge for edge in row if edge[1] in useful] for row in automaton.edges]
    return Automaton(edges, automaton.accepting)


def of_node(node: Node, rules: Mapping[str, Node] | None = None) -> Automaton:
    """The automaton of a node without recursion. Raises TooLarge."""
    matcher = Matcher(Grammar(node, rules or {}))

    def edges_of(state: frozenset[object]) -> Iterable[tuple[charsets.Ranges, frozenset[object]]]:
        matcher.restore(state)
        for ranges in charsets.partition(matcher.next_chars()):
            matcher.restore(state)
            matcher.feed(chr(ranges[0][0]))
            yield ranges, matcher.state()

    def accepts(state: frozenset[object]) -> bool:
        matcher.restore(state)
        return matcher.is_complete

    try:
        return _explored(matcher.state(), edges_of, accepts)
    except TooManyWays as exc:
        raise TooLarge from exc


def of_length(low: int, high: int | None) -> Automaton:
    """Texts of `low` to `high` characters."""
    last = low if high is None else high

    def edges_of(state: int) -> Iterable[tuple[charsets.Ranges, int]]:
        if state < last:
            yield charsets.ANY, state + 1
        elif high is None:
            yield charsets.ANY, state

    return _explored(0, edges_of, lambda state: state >= low)


def intersection(one: Automaton, other: Automaton) -> Automaton:
    """Texts of both. Raises TooLarge."""

    def edges_of(state: tuple[int, int]) -> Iterable[tuple[charsets.Ranges, tuple[int, int]]]:
        for ranges, target in one.edges[state[0]]:
            for others, other_target in other.edges[state[1]]:
                both = charsets.intersection(ranges, others)
                if both:
                    yield both, (target, other_target)

    return _explored((0, 0), edges_of, lambda state: one.accepting[state[0]] and other.accepting[state[1]])


def difference(one: Automaton, other: Automaton) -> Automaton:
    """Texts of `one` that are not texts of `other`. Raises TooLarge."""

    def edges_of(state: tuple[int, int | None]) -> Iterable[tuple[charsets.Ranges, tuple[int, int | None]]]:
        others = [] if state[1] is None else other.edges[state[1]]
        for ranges, target in one.edges[state[0]]:
            left = ranges
            for taken, other_target in others:
                both = charsets.intersection(ranges, taken)
                left = charsets.difference(left, taken)
                if both:
                    yield both, (target, other_target)
            if left:
                yield left, (target, None)

    def accepts(state: tuple[int, int | None]) -> bool:
        return one.accepting[state[0]] and (state[1] is None or not other.accepting[state[1]])

    start: tuple[int, int | None] = (0, 0)
    return _explored(start, edges_of, accepts)


def is_empty(automaton: Automaton) -> bool:
    """Whether no text is accepted."""
    return not automaton.edges[0] and not automaton.accepting[0]


def of_free_text(text: FreeText) -> Automaton:
    """Texts without some strings. Raises TooLarge."""
    return _explored(text.behind, lambda behind: free_text_edges(text.stops, behind), lambda behind: True)


def to_node(
    automaton: Automaton, name: str, encode: Callable[[charsets.Ranges], Node] = chars, *, shares: bool = True
) -> tuple[Node, dict[str, Node]]:
    """The automaton's texts, as a node and the rules that it needs, named from `name` on and not recursive.

    `encode` gives how one character of a set is written. Without `shares` there are no rules.
    Circles are solved as linear equations (Arden, 1961).
    """
    sources: dict[int, int] = {}
    for row in automaton.edges:
        for _, target in row:
            sources[target] = sources.get(target, 0) + 1
    solved: dict[int, Node] = {}
    depths: dict[int, int] = {}
    rules: dict[str, Node] = {}
    leads_to = {state: [target for _, target in row] for state, row in enumerate(automaton.edges)}
    for found in components(leads_to, roots=[0]):
        component = found[::-1]  # solved from its last-found state on
        inside = set(component)
        rows: dict[int, dict[int, Node]] = {}
        ends: dict[int, Node] = {}
        for state in component:
            rows[state] = {}
            out = [EMPTY] if automaton.accepting[state] else []
            for ranges, target in automaton.edges[state]:
                if target in inside:
                    rows[state][target] = encode(ranges)
                else:
                    out.append(join([encode(ranges), solved[target]]))
            ends[state] = choice(out)
        for state, node in _solution(component, rows, ends).items():
            depths[state] = 1 + max((depths.get(target, 0) for _, target in automaton.edges[state]), default=0)
            if shares and node != EMPTY and (sources.get(state, 0) > 1 or depths[state] >= _MAX_NESTING):
                depths[state] = 0
                rules[f"{name}{state}"] = node
                node = Reference(f"{name}{state}")
            solved[state] = node
    return solved[0], rules


def _solution(component: list[int], rows: dict[int, dict[int, Node]], ends: dict[int, Node]) -> dict[int, Node]:
    """X[i] of X[i] = rows[i][j] X[j] | ... | ends[i], for all i."""
    for index, state in enumerate(component):
        loop = rows[state].pop(state, None)
        if loop is not None:
            again = repeated(loop)
            rows[state] = {target: join([again, node]) for target, node in rows[state].items()}
            ends[state] = join([again, ends[state]])
        for other in component[index + 1 :]:
            way = rows[other].pop(state, None)
            if way is None:
                continue
            for target, node in rows[state].items():
                rows[other][target] = choice([rows[other].get(target, NOTHING), join([way, node])])
            ends[other] = choice([ends[other], join([way, ends[state]])])
    result: dict[int, Node] = {}
    for state in reversed(component):
        result[state] = choice([ends[state], *(join([node, result[target]]) for target, node in rows[state].items())])
    return result
