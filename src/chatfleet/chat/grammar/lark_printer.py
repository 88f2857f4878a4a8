"""A grammar as llguidance's Lark.

llguidance's lexemes are greedy: what can still become a longer lexeme is not looked at as a shorter one. A grammar
without recursion is therefore one lexeme, which leaves nothing to be greedy about. In others the tokens are lexemes
(`nodes.Token`) and all else goes character by character, which is right for any grammar and slow: 5 ms a token with
128 000 tokens in llguidance 1.9.1, against 0.03 ms.
"""

from collections.abc import Set

from chatfleet.chat.grammar.automata import of_free_text, to_node
from chatfleet.chat.grammar.nodes import (
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
    join,
    references,
)


def to_lark(grammar: Grammar) -> str:
    """The grammar in llguidance's syntax; its root is the rule `start`."""
    return _Printer(grammar).text()


def _recursive_rules(grammar: Grammar) -> Set[str]:
    """Rules that reach a rule which refers to itself, over whatever others."""
    needs = {name: set(references(body)) for name, body in grammar.rules.items()}
    finite: set[str] = set()
    grew = True
    while grew:
        added = {name for name, needed in needs.items() if name not in finite and needed <= finite}
        finite |= added
        grew = bool(added)
    return needs.keys() - finite


class _NoLexemes(Exception):
    """The tokens of this grammar cannot be lexemes: free text is followed by something else than a literal, or it goes
    on behind what may be the beginning of one."""


class _Printer:
    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._recursive = _recursive_rules(grammar)
        self._numbers = {name: index for index, name in enumerate(grammar.rules)}
        self._begin(has_lexemes=True)

    def _begin(self, *, has_lexemes: bool) -> None:
        self._has_lexemes = has_lexemes
        self._lexemes: dict[str, str] = {}
        self._terminals: dict[str, None] = {}
        self._lines: list[str] = []

    def text(self) -> str:
        root = self._grammar.root
        if self._recursive.isdisjoint(references(root)):
            self._lines.append(f"ROOT: {self._terminal(root)}")
            self._lines.append("start: ROOT")
        else:
            try:
                self._print_rules()
            except _NoLexemes:
                self._begin(has_lexemes=False)
                self._print_rules()
        self._print_terminals()
        return "\n".join(self._lines) + "\n"

    def _print_rules(self) -> None:
        self._lines.append(f"start: {self._rule(self._grammar.root, is_last=True)}")
        for name, number in self._numbers.items():
            self._lines.append(f"r{number}: {self._rule(self._grammar.rules[name])}")

    def _terminal(self, node: Node) -> str:
        """The node as an expression of a terminal."""
        match node:
            case Literal(text):
                return f"/{''.join(_in_class(ord(char)) for char in text)}/"
            case CharSet():
                return f"/{_char_class(node)}/"
            case Reference(name):
                return self._terminal_of(name)
            case Repeat(part, low, high):
                return f"({self._terminal(part)}){_count(low, high)}"
            case Token(part):
                return f"({self._terminal(part)})"
            case FreeText():
                return f"({self._terminal(_unrolled(node))})"
            case Sequence(()):
                return '""'
            case Sequence(parts):
                return " ".join(
                    f"({self._terminal(part)})" if isinstance(part, Alternatives) else self._terminal(part)
                    for part in parts
                )
            case Alternatives(options) if options:
                return " | ".join(self._terminal(option) for option in options)
        raise ValueError("a grammar without any text cannot be printed")

    def _terminal_of(self, name: str) -> str:
        """The name of the terminal that is this rule."""
        terminal = f"R{self._numbers[name]}"
        self._terminals.setdefault(name, None)
        return terminal

    def _print_terminals(self) -> None:
        """The terminals that are used, and those that these use."""
        done: set[str] = set()
        while len(done) < len(self._terminals):
            for name in [name for name in self._terminals if name not in done]:
                done.add(name)
                self._lines.append(f"R{self._numbers[name]}: {self._terminal(self._grammar.rules[name])}")

    def _rule(self, node: Node, *, is_last: bool = False) -> str:
        """The node as an expression of a rule, of tokens and characters. `is_last` says that nothing follows it."""
        match node:
            case Literal(text):
                return " ".join(self._lexeme(Literal(char)) for char in text)
            case CharSet():
                return self._lexeme(node)
            case Token(part):
                return self._lexeme(node) if self._has_lexemes else f"({self._rule(part)})"
            case FreeText():
                if not self._has_lexemes:
                    return f"({self._rule(_unrolled(node))})"
                if not is_last or node.behind:
                    raise _NoLexemes
                return self._lexeme(node)
            case Reference(name):
                return f"r{self._numbers[name]}"
            case Repeat(part, low, high):
                return f"({self._rule(part)}){_count(low, high)}"
            case Sequence(parts) if parts:
                return self._rule_sequence(parts, is_last=is_last)
            case Alternatives(options) if options:
                return " | ".join(self._rule(option, is_last=is_last) for option in options)
            case _:
                return self._terminal(node)

    def _rule_sequence(self, parts: tuple[Node, ...], *, is_last: bool) -> str:
        first, *rest = parts
        if not rest:
            written = self._rule(first, is_last=is_last)
            return f"({written})" if isinstance(first, Alternatives) else written
        if self._has_lexemes and isinstance(first, FreeText) and not first.behind:
            following, *tail = rest
            match following:
                case Literal():
                    return self._rule_sequence((Token(join([first, following])), *tail), is_last=is_last)
                case Alternatives(options):
                    ways = (join([first, option]) for option in options)
                    return self._rule_sequence((Alternatives(tuple(ways)), *tail), is_last=is_last)
            raise _NoLexemes
        written = self._rule(first)
        written = f"({written})" if isinstance(first, Alternatives) else written
        return f"{written} {self._rule_sequence(tuple(rest), is_last=is_last)}"

    def _lexeme(self, node: Node) -> str:
        """The name of a terminal that is this node."""
        text = self._terminal(node)
        name = self._lexemes.get(text)
        if name is None:
            name = self._lexemes[text] = f"T{len(self._lexemes)}"
            self._lines.append(f"{name}: {text}")
        return name


def _unrolled(node: FreeText) -> Node:
    """Free text as other nodes. A state of its automaton is entered from many others, so that there are no rules."""
    return to_node(of_free_text(node), "", shares=False)[0]


def _count(low: int, high: int | None) -> str:
    if high is None:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"{{{low}}}" if low == high else f"{{{low},{high}}}"


def _char_class(node: CharSet) -> str:
    return (
        "["
        + "".join(_in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}" for low, high in node.ranges)
        + "]"
    )


def _in_class(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
