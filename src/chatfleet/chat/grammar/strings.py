"""Strings of JSON with conditions on their text: length, patterns, formats, and what they must not be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chatfleet.chat.grammar import charsets
from chatfleet.chat.grammar.automata import Automaton, difference, intersection, is_empty, of_length, of_node, to_node
from chatfleet.chat.grammar.json_text import ANY_STRING, COLON, STRING_CHAR, encoded, encoded_set, quoted
from chatfleet.chat.grammar.nodes import (
    NOTHING,
    CharSet,
    Literal,
    Node,
    chars,
    choice,
    join,
    repeated,
    rewritten,
    text,
    token,
)


@dataclass(frozen=True, slots=True)
class TextConditions:
    """What a text must be: each of `languages` (nodes over its characters), within the length, in none of `barred`."""

    languages: Sequence[Node] = ()
    low: int = 0
    high: int | None = None
    barred: Sequence[Node] = field(default=())

    @property
    def is_free(self) -> bool:
        return not self.languages and not self.barred


def string(conditions: TextConditions, rule_name: str) -> tuple[Node, dict[str, Node]]:
    """A JSON string, and rules named from `rule_name` on. Raises automata.TooLarge."""
    inner, rules = _inside(conditions, rule_name)
    return quoted(inner), rules


def key(conditions: TextConditions, rule_name: str) -> tuple[Node, dict[str, Node]]:
    """A key with its colon, and rules named from `rule_name` on. Raises automata.TooLarge."""
    inner, rules = _inside(conditions, rule_name)
    return token(join([text('"'), inner, text('"'), COLON])) if inner != NOTHING else NOTHING, rules


def fixed_key(name: str) -> Node:
    """This key with its colon."""
    return token(join([text(f'"{encoded(name)}"'), COLON]))


def _inside(conditions: TextConditions, rule_name: str) -> tuple[Node, dict[str, Node]]:
    if conditions.is_free:
        return repeated(STRING_CHAR, conditions.low, conditions.high), {}
    if len(conditions.languages) == 1 and not conditions.barred and (conditions.low, conditions.high) == (0, None):
        return _encoded(conditions.languages[0]), {}
    automaton = automaton_of(conditions)
    if is_empty(automaton):
        return NOTHING, {}
    return to_node(automaton, rule_name, encoded_set)


def automaton_of(conditions: TextConditions) -> Automaton:
    """Texts that meet all the conditions. Raises automata.TooLarge."""
    automata = [of_node(language) for language in conditions.languages]
    if (conditions.low, conditions.high) != (0, None) or not automata:
        automata.append(of_length(conditions.low, conditions.high))
    result = automata[0]
    for other in automata[1:]:
        result = intersection(result, other)
    for barred in conditions.barred:
        result = difference(result, of_node(barred))
    return result


def _encoded(node: Node) -> Node:
    def replace(part: Node) -> Node | None:
        match part:
            case Literal(value):
                return text(encoded(value))
            case CharSet(ranges):
                return encoded_set(ranges)
            case _:
                return None

    return rewritten(node, replace)


def any_of(values: Iterable[str]) -> Node:
    """Exactly these texts."""
    return choice(text(value) for value in values)


ANY_TEXT = repeated(chars(charsets.ANY))
__all__ = ["ANY_STRING", "ANY_TEXT", "TextConditions", "any_of", "automaton_of", "fixed_key", "key", "string"]
