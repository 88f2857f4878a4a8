"""What makes any rules a grammar that engines take: no rule without a text, none unreachable, no left recursion."""

from collections.abc import Callable, Mapping
from typing import Final

from chatfleet.chat.grammar.budget import tick
from chatfleet.chat.grammar.components import circles, components
from chatfleet.chat.grammar.nodes import (
    NOTHING,
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
    is_nullable,
    join,
    references,
    repeated,
    rewritten,
)
from chatfleet.core.errors import InvalidRequest

_SHOWN_RULES: Final = 12


def pruned(grammar: Grammar) -> Grammar:
    """The same texts, without rules that have none and rules that are not reached. The root is NOTHING where there is
    no text at all."""
    productive = _that_hold(grammar.rules, _has_text)

    def without_empty_rules(node: Node) -> Node | None:
        return NOTHING if isinstance(node, Reference) and not productive[node.name] else None

    has_dead = not all(productive.values())
    root = rewritten(grammar.root, without_empty_rules) if has_dead else grammar.root
    rules: dict[str, Node] = {}
    pending = references(root)[::-1]
    while pending:
        name = pending.pop()
        if name not in rules:
            body = grammar.rules[name]
            rules[name] = rewritten(body, without_empty_rules) if has_dead else body
            pending.extend(references(rules[name])[::-1])
    return Grammar(root, rules)


def _that_hold(rules: Mapping[str, Node], holds: Callable[[Node, Mapping[str, bool]], bool]) -> dict[str, bool]:
    """Of which rules `holds` is true. It is given those of which that is known, and never turns false by more."""
    uses = {name: references(body) for name, body in rules.items()}
    users: dict[str, list[str]] = {}
    for name, used in uses.items():
        for other in used:
            users.setdefault(other, []).append(name)
    known = dict.fromkeys(rules, False)
    pending = [name for component in components(uses) for name in component]  # used ones before their users: one pass
    while pending:
        grown = []
        for name in pending:
            tick()
            if not known[name] and holds(rules[name], known):
                known[name] = True
                grown.append(name)
        pending = list(dict.fromkeys(user for name in grown for user in users.get(name, ()) if not known[user]))
    return known


def _has_text(node: Node, productive: Mapping[str, bool]) -> bool:
    tick()
    match node:
        case Literal() | CharSet() | FreeText():
            return True
        case Sequence(parts):
            return all(_has_text(part, productive) for part in parts)
        case Alternatives(options):
            return any(_has_text(option, productive) for option in options)
        case Repeat(part, low, _):
            return low == 0 or _has_text(part, productive)
        case Token(part):
            return _has_text(part, productive)
        case Reference(name):
            return productive.get(name, False)


def nullable_rules(rules: Mapping[str, Node]) -> dict[str, bool]:
    """Which rules have the empty text."""
    return _that_hold(rules, is_nullable)


def recursive_rules(rules: Mapping[str, Node]) -> frozenset[str]:
    """Rules that reach themselves."""
    uses = {name: references(body) for name, body in rules.items()}
    return frozenset(name for circle in circles(uses) for name in circle)


def finished(grammar: Grammar, *, param: str | None) -> Grammar:
    """The grammar without useless rules and left recursion. Raises InvalidRequest where it cannot be had, and where
    no text is left."""
    grammar = _without_unit_cycles(pruned(grammar))
    rules = {name: _without_own_left_recursion(name, body) for name, body in grammar.rules.items()}
    nullable = nullable_rules(rules)
    cycle = _circle({name: _first_rules(body, nullable) for name, body in rules.items()})
    if cycle is not None:
        raise InvalidRequest(
            f"The rule `{cycle[0]}` is left-recursive: it can begin with itself ({_shown(cycle)}). "
            "Write the recursion at the right, as in `list ::= item list | item`.",
            param=param,
        )
    root, rules = _without_empty_turns(grammar.root, rules, nullable, param=param)
    grammar = pruned(Grammar(root, rules))
    if grammar.root == NOTHING:
        raise InvalidRequest(
            "No text can satisfy this: its conditions exclude each other, or it never ends.", param=param
        )
    return grammar


def _shown(cycle: list[str]) -> str:
    shown = cycle if len(cycle) <= _SHOWN_RULES else [*cycle[: _SHOWN_RULES - 1], "...", cycle[-1]]
    return " -> ".join(shown)


def _without_unit_cycles(grammar: Grammar) -> Grammar:
    """Rules that stand for each other in a circle are one rule, which has all their options."""
    units = {name: _unit_names(body) for name, body in grammar.rules.items()}
    first_of: dict[str, str] = {}
    for circle in circles(units):
        inside = set(circle)
        first_of |= dict.fromkeys(circle, next(name for name in grammar.rules if name in inside))
    if not first_of:
        return grammar

    def replace(node: Node) -> Node | None:
        return Reference(first_of[node.name]) if isinstance(node, Reference) and node.name in first_of else None

    options: dict[str, list[Node]] = {}
    for name, body in grammar.rules.items():
        first = first_of.get(name, name)
        kept = (
            option for option in _options(body) if name not in first_of or not _is_in_circle(option, first, first_of)
        )
        options.setdefault(first, []).extend(rewritten(option, replace) for option in kept)
    return Grammar(rewritten(grammar.root, replace), {name: choice(ways) for name, ways in options.items()})


def _is_in_circle(option: Node, first: str, first_of: Mapping[str, str]) -> bool:
    return isinstance(option, Reference) and first_of.get(option.name) == first


def _options(node: Node) -> tuple[Node, ...]:
    return node.options if isinstance(node, Alternatives) else (node,)


def _unit_names(node: Node) -> list[str]:
    return [option.name for option in _options(node) if isinstance(option, Reference)]


def _without_own_left_recursion(name: str, body: Node) -> Node:
    """`a ::= a x | b` as `a ::= b x*`."""
    tails, others = [], []
    for option in _options(body):
        match option:
            case Sequence((Reference(first), *tail)) if first == name:
                tails.append(join(tail))
            case _:
                others.append(option)
    return join([choice(others), repeated(choice(tails))]) if tails else body


def _first_rules(node: Node, nullable: Mapping[str, bool]) -> list[str]:
    """Rules that a text of the node may begin with."""
    match node:
        case Reference(name):
            return [name]
        case Alternatives(options):
            return [name for option in options for name in _first_rules(option, nullable)]
        case Repeat(part, _, _):
            return _first_rules(part, nullable)
        case Sequence(parts):
            names: list[str] = []
            for part in parts:
                names += _first_rules(part, nullable)
                if not is_nullable(part, nullable):
                    break
            return names
        case _:
            return []


def _circle(edges: Mapping[str, list[str]]) -> list[str] | None:
    """A way along the edges from a rule to itself."""
    inside = {name for circle in circles(edges) for name in circle}
    if not inside:
        return None
    start = next(name for name in edges if name in inside)
    come_from: dict[str, str] = {}
    pending = [start]
    for name in pending:  # grows as it goes
        for step in edges[name]:
            tick()
            if step == start:
                path = [name]
                while path[-1] != start:
                    path.append(come_from[path[-1]])
                return [*path[::-1], start]
            if step in inside and step not in come_from:
                come_from[step] = name
                pending.append(step)
    raise AssertionError(start)


def _without_empty_turns(
    root: Node, rules: Mapping[str, Node], nullable: Mapping[str, bool], *, param: str | None
) -> tuple[Node, dict[str, Node]]:
    """Repetitions of rules that may be empty, with the rule's own text in their place."""
    recursive = recursive_rules(rules)
    inlined: dict[str, Node] = {}

    def replace(node: Node) -> Node | None:
        if isinstance(node, Repeat) and is_nullable(node.part, nullable):
            return repeated(rewritten(node.part, inline), node.low, node.high)
        return None

    def inline(node: Node) -> Node | None:
        if not isinstance(node, Reference) or not nullable[node.name]:
            return None
        if node.name in recursive:
            raise InvalidRequest(
                f"The rule `{node.name}` may be empty and is repeated. Make it never empty, and write `?` behind it "
                "where it may be absent.",
                param=param,
            )
        if node.name not in inlined:
            inlined[node.name] = rewritten(rules[node.name], inline)
        return inlined[node.name]

    return rewritten(root, replace), {name: rewritten(body, replace) for name, body in rules.items()}
