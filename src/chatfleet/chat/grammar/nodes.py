"""What a grammar is made of: rules over characters, and how rules are put together.

Everything is immutable. Built by the functions below, nodes are in a normal form: no sequence in a sequence, no
empty part of one, no repetition of what may be empty. `NOTHING` is the language without any text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from chatfleet.chat.grammar import charsets, limits
from chatfleet.chat.grammar.budget import tick
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly this text, which is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character out of these ranges."""

    ranges: charsets.Ranges


def _hash_once(node: object, *parts: object) -> None:
    """Nodes are shared, and each may stand in many places: to hash one anew wherever it stands would take for ever."""
    object.__setattr__(node, "_hash", hash((type(node).__name__, *parts)))


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part behind the other. Without parts: the empty text."""

    parts: tuple["Node", ...] = field(hash=False)
    _hash: int = field(init=False, repr=False, compare=False, hash=True)

    def __post_init__(self) -> None:
        _hash_once(self, self.parts)


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Any one of the options. Without options: no text at all."""

    options: tuple["Node", ...] = field(hash=False)
    _hash: int = field(init=False, repr=False, compare=False, hash=True)

    def __post_init__(self) -> None:
        _hash_once(self, self.options)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`low` to `high` times the part, without a bound where `high` is None. The part is never empty text."""

    part: "Node" = field(hash=False)
    low: int = field(hash=False)
    high: int | None = field(hash=False)
    _hash: int = field(init=False, repr=False, compare=False, hash=True)

    def __post_init__(self) -> None:
        _hash_once(self, self.part, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the rule of this name stands for."""

    name: str


@dataclass(frozen=True, slots=True)
class Token:
    """The same texts as `part`, which has no recursion; a printer may take them as one lexeme, longest match first.

    So it is right for what ends where it ends: a JSON string, a number in JSON, a comma.
    """

    part: "Node" = field(hash=False)
    _hash: int = field(init=False, repr=False, compare=False, hash=True)

    def __post_init__(self) -> None:
        _hash_once(self, self.part)


@dataclass(frozen=True, slots=True)
class FreeText:
    """Any text that has none of `stops` in it, nor makes one together with what stands before it.

    Of that, `behind` is as much as a stop may begin with.
    """

    stops: tuple[str, ...]
    behind: str = ""


Node = Literal | CharSet | Sequence | Alternatives | Repeat | Reference | Token | FreeText

EMPTY: Final[Node] = Sequence(())
NOTHING: Final[Node] = Alternatives(())


def text(value: str) -> Node:
    """Exactly `value`."""
    return Literal(value) if value else EMPTY


def chars(ranges: charsets.Ranges) -> Node:
    """One character of `ranges`."""
    return CharSet(ranges) if ranges else NOTHING


def join(parts: Iterable[Node]) -> Node:
    """The parts one behind the other."""
    flat: list[Node] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        pieces = part.parts if isinstance(part, Sequence) else (part,)
        tick(1 + len(pieces))
        for piece in pieces:
            last = flat[-1] if flat else None
            if isinstance(piece, Literal) and isinstance(last, Literal):
                flat[-1] = Literal(last.text + piece.text)
            else:
                flat.append(piece)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(options: Iterable[Node]) -> Node:
    """Any one of the options."""
    flat: dict[Node, None] = {}
    for option in options:
        more = option.options if isinstance(option, Alternatives) else (option,)
        tick(1 + len(more))
        flat |= dict.fromkeys(more)
    return next(iter(flat)) if len(flat) == 1 else Alternatives(tuple(flat))


def token(part: Node) -> Node:
    """The part as one lexeme; see `Token`."""
    return part if part in (EMPTY, NOTHING) or isinstance(part, Token) else Token(part)


def optional(part: Node) -> Node:
    """The part, or nothing of it."""
    return choice([part, EMPTY])


def repeated(part: Node, low: int = 0, high: int | None = None) -> Node:
    """`low` to `high` times the part, which must not be nullable through a rule."""
    core = _without_empty(part)
    if core is not part:
        low = 0
    if high == 0 or (core == NOTHING and low == 0) or core == EMPTY:
        return EMPTY
    if core == NOTHING or (high is not None and high < low):
        return NOTHING
    if (low, high) == (1, 1):
        return core
    if isinstance(core, Repeat) and (core.low, core.high) == (1, None) and high is None:
        return Repeat(core.part, low, None)
    return optional(core) if (low, high) == (0, 1) else Repeat(core, low, high)


def _without_empty(node: Node) -> Node:
    """The same texts but the empty one; the node itself where it is not among them."""
    if not is_nullable(node, {}):
        return node
    match node:
        case Alternatives(options):
            return choice(_without_empty(option) for option in options if option != EMPTY)
        case Repeat(part, _, high):
            return repeated(part, 1, high)
        case Token(part):
            return token(_without_empty(part))
        case Sequence(parts) if parts:
            if len(parts) > limits.MAX_OPTIONAL_PARTS:
                raise InvalidRequest(
                    f"More than {limits.MAX_OPTIONAL_PARTS} parts that may all be empty are repeated together."
                )
            return choice(join([_without_empty(part), *parts[index + 1 :]]) for index, part in enumerate(parts))
    return NOTHING


def is_nullable(node: Node, nullable_rules: Mapping[str, bool]) -> bool:
    """Whether the empty text is among the node's. Rules that are not named count as never empty."""
    tick()
    match node:
        case Literal() | CharSet():
            return False
        case FreeText():
            return True
        case Sequence(parts):
            return all(is_nullable(part, nullable_rules) for part in parts)
        case Alternatives(options):
            return any(is_nullable(option, nullable_rules) for option in options)
        case Repeat(part, low, _):
            return low == 0 or is_nullable(part, nullable_rules)
        case Token(part):
            return is_nullable(part, nullable_rules)
        case Reference(name):
            return nullable_rules.get(name, False)


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Sequence(parts):
            return parts
        case Alternatives(options):
            return options
        case Repeat(part, _, _) | Token(part):
            return (part,)
        case _:
            return ()


def walk(node: Node) -> Iterator[Node]:
    """The node and everything in it."""
    pending = [node]
    while pending:
        current = pending.pop()
        tick()
        yield current
        pending.extend(children(current))


def rewritten(node: Node, replace: Callable[[Node], Node | None]) -> Node:
    """The node with every part for which `replace` gives something else put in its place, in normal form again."""
    tick()
    replacement = replace(node)
    if replacement is not None:
        return replacement
    match node:
        case Sequence(parts):
            return join(rewritten(part, replace) for part in parts)
        case Alternatives(options):
            return choice(rewritten(option, replace) for option in options)
        case Repeat(part, low, high):
            return repeated(rewritten(part, replace), low, high)
        case Token(part):
            return token(rewritten(part, replace))
        case _:
            return node


def references(node: Node) -> list[str]:
    """Names of the rules that the node refers to, in order."""
    return list(dict.fromkeys(part.name for part in walk(node) if isinstance(part, Reference)))[::-1]


@dataclass(frozen=True)
class Grammar:
    """A root and the rules that it needs. No rule is left-recursive. Immutable, and equal where its parts are."""

    root: Node
    rules: Mapping[str, Node] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.root, len(self.rules)))


def _combined(grammars: Iterable[Grammar], build: Callable[[list[Node]], Node]) -> Grammar:
    rules: dict[str, Node] = {}
    roots: list[Node] = []
    for grammar in grammars:
        renamed = _renamed(grammar, rules)
        rules |= renamed.rules
        roots.append(renamed.root)
    return checked(Grammar(build(roots), rules))


def _renamed(grammar: Grammar, taken: Mapping[str, Node]) -> Grammar:
    """The same grammar with other names for the rules that mean something else in `taken`."""
    if all(taken.get(name, body) == body for name, body in grammar.rules.items()):
        return grammar
    names = {name: f"r{len(taken) + index}" for index, name in enumerate(grammar.rules)}
    while any(name in taken for name in names.values()):
        names = {name: f"{new}x" for name, new in names.items()}

    def replace(node: Node) -> Node | None:
        return Reference(names[node.name]) if isinstance(node, Reference) else None

    return Grammar(
        rewritten(grammar.root, replace),
        {names[name]: rewritten(body, replace) for name, body in grammar.rules.items()},
    )


def literal(value: str) -> Grammar:
    """Exactly this text."""
    return Grammar(text(value))


def sequence(*parts: Grammar) -> Grammar:
    """The parts one behind the other. Raises InvalidRequest where the whole is too large."""
    return _combined(parts, join)


def alternatives(*parts: Grammar) -> Grammar:
    """Any one of the parts. Raises InvalidRequest where the whole is too large."""
    return _combined(parts, choice)


def repeat(part: Grammar, low: int = 0, high: int | None = None) -> Grammar:
    """`low` to `high` times the part; None is no bound. Raises InvalidRequest where the whole is too large."""
    count = max(low, high or 0)
    if count > limits.MAX_REPEAT:
        raise InvalidRequest(f"A repetition may have at most {limits.MAX_REPEAT} turns, not {count}.")
    return _combined([part], lambda roots: repeated(roots[0], low, high))


def checked(grammar: Grammar, *, param: str | None = None) -> Grammar:
    """The grammar, if it is not too large; else InvalidRequest."""
    nodes = (node for body in (grammar.root, *grammar.rules.values()) for node in walk(body))
    if len(grammar.rules) > limits.MAX_RULES or next(islice(nodes, limits.MAX_NODES, None), None) is not None:
        raise InvalidRequest(
            f"The grammar that this makes is too large: it has more than {limits.MAX_NODES} parts or "
            f"{limits.MAX_RULES} rules. Simplify the schema or the grammar.",
            param=param,
        )
    return grammar


def without_nul(grammar: Grammar, *, param: str | None) -> Grammar:
    """The grammar, if it asks for no NUL character; else UnsupportedParameter. Engines end texts at it. Among other
    characters of a set it may be."""
    for body in (grammar.root, *grammar.rules.values()):
        for node in walk(body):
            match node:
                case Literal(value) if "\0" in value:
                    break
                case CharSet(((0, 0),)):
                    break
                case FreeText(stops) if any("\0" in stop for stop in stops):
                    break
        else:
            continue
        raise UnsupportedParameter("A NUL character (U+0000) cannot be honoured by a grammar.", param=param)
    return grammar
