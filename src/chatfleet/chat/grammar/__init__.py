"""Grammars: what an answer must be, from JSON schemas, regexes, choices, EBNF and structural tags.

One grammar of our own (rules over characters) stands between what requests bring and what engines take. It is
printed in an engine's syntax, matches text, and says what may follow behind a text. All of it is pure: no function
keeps anything, and each may run in any thread.
"""

from chatfleet.chat.grammar.choices import from_choices
from chatfleet.chat.grammar.ebnf import from_ebnf
from chatfleet.chat.grammar.ebnf_printer import to_ebnf
from chatfleet.chat.grammar.free_text import text_without
from chatfleet.chat.grammar.json_schema import from_json_schema
from chatfleet.chat.grammar.json_text import json_object
from chatfleet.chat.grammar.lark_printer import to_lark
from chatfleet.chat.grammar.matching import is_complete, matches, remaining
from chatfleet.chat.grammar.nodes import Grammar, alternatives, literal, repeat, sequence
from chatfleet.chat.grammar.regex import from_regex
from chatfleet.chat.grammar.structural_tags import from_structural_tag

__all__ = [
    "Grammar",
    "alternatives",
    "from_choices",
    "from_ebnf",
    "from_json_schema",
    "from_regex",
    "from_structural_tag",
    "is_complete",
    "json_object",
    "literal",
    "matches",
    "remaining",
    "repeat",
    "sequence",
    "text_without",
    "to_ebnf",
    "to_lark",
]
