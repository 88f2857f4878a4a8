"""What makes any rules a grammar that engines take: no rule without a text, none unreachable, no left recursion."""

from collections.abc import Mapping

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


def pruned(grammar: Grammar) -> Grammar:
    """The same texts, without rules that have none and rules that are not reached. The root is NOTHING where there is
    no text at all."""
    productive: set[str] = set()
    grew = True
    while grew:
        added = {name for name, body in grammar.rules.items() if name not in productive and _has_text(body, productive)}
        productive |= added
        grew = bool(added)

    def without_empty_rules(node: Node) -> Node | None:
        return NOTHING if isinstance(node, Reference) and node.name not in productive else None

    dead = grammar.rules.keys() - productive
    root = rewritten(grammar.root, without_empty_rules) if dead else grammar.root
    rules: dict[str, Node] = {}
    pending = references(root)[::-1]
    while pending:
        name = pending.pop()
        if name not in rules:
            body = grammar.rules[name]
            rules[name] = rewritten(body, without_empty_rules) if dead else body
            pending.extend(references(rules[name])[::-1])
    return Grammar(root, rules)


def _has_text(node: Node, productive: set[str]) -> bool:
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
            return name in productive


def nullable_rules(rules: Mapping[str, Node]) -> dict[str, bool]:
    """Which rules have the empty text."""
    nullable = dict.fromkeys(rules, False)
    changed = True
    while changed:
        changed = False
        for name, body in rules.items():
            if not nullable[name] and is_nullable(body, nullable):
                nullable[name] = changed = True
    return nullable


def finished(grammar: Grammar, *, param: str | None) -> Grammar:
    """The grammar without useless rules and left recursion. Raises InvalidRequest where it cannot be had, and where
    no text is left."""
    grammar = pruned(grammar)
    rules = _without_unit_cycles(grammar.rules)
    rules = {name: _without_own_left_recursion(name, body) for name, body in rules.items()}
    nullable = nullable_rules(rules)
    first = {name: _first_rules(body, nullable) for name, body in rules.items()}
    for name in rules:
        cycle = _path_back(name, first)
        if cycle is not None:
            raise InvalidRequest(
                f"The rule `{name}` is left-recursive: it can begin with itself ({' -> '.join(cycle)}). "
                "Write the recursion at the right, as in `list ::= item list | item`.",
                param=param,
            )
    root, rules = _without_empty_turns(grammar.root, rules, nullable, param=param)
    grammar = pruned(Grammar(root, rules))
    if grammar.root == NOTHING:
        raise InvalidRequest("No text can satisfy this: the conditions exclude each other.", param=param)
    return grammar


def _without_unit_cycles(rules: Mapping[str, Node]) -> dict[str, Node]:
    """Rules that stand for each other in a circle are one rule: each gets all the options of the circle."""
    units = {name: _unit_names(body) for name, body in rules.items()}
    reached = {name: _reachable(name, units) for name in rules}
    result = dict(rules)
    for name in rules:
        circle = [other for other in reached[name] if name in reached[other]]
        if circle:
            options = (option for member in dict.fromkeys([name, *circle]) for option in _options(rules[member]))
            inside = {Reference(member) for member in circle}
            result[name] = choice(option for option in options if option not in inside)
    return result


def _options(node: Node) -> tuple[Node, ...]:
    return node.options if isinstance(node, Alternatives) else (node,)


def _unit_names(node: Node) -> list[str]:
    return [option.name for option in _options(node) if isinstance(option, Reference)]


def _reachable(name: str, edges: Mapping[str, list[str]]) -> list[str]:
    """Names that a path of at least one edge leads to."""
    seen: dict[str, None] = {}
    pending = list(edges[name])
    while pending:
        current = pending.pop()
        if current not in seen:
            seen[current] = None
            pending.extend(edges[current])
    return list(seen)


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


def _path_back(name: str, edges: Mapping[str, list[str]]) -> list[str] | None:
    """A way along the edges from a rule to itself."""
    pending = [[name]]
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        for step in edges[path[-1]]:
            if step == name:
                return [*path, name]
            if step not in seen:
                seen.add(step)
                pending.append([*path, step])
    return None


def _without_empty_turns(
    root: Node, rules: Mapping[str, Node], nullable: Mapping[str, bool], *, param: str | None
) -> tuple[Node, dict[str, Node]]:
    """Repetitions of rules that may be empty, with the rule's own text in their place."""

    def replace(node: Node) -> Node | None:
        if isinstance(node, Repeat) and is_nullable(node.part, nullable):
            return repeated(rewritten(node.part, inline), node.low, node.high)
        return None

    def inline(node: Node) -> Node | None:
        if not isinstance(node, Reference) or not nullable[node.name]:
            return None
        if node.name in _reachable(node.name, {name: references(body) for name, body in rules.items()}):
            raise InvalidRequest(
                f"The rule `{node.name}` may be empty and is repeated. Make it never empty, and write `?` behind it "
                "where it may be absent.",
                param=param,
            )
        return rewritten(rules[node.name], inline)

    return rewritten(root, replace), {name: rewritten(body, replace) for name, body in rules.items()}
