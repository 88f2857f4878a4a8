"""How large a grammar, and what it is made from, may be. Beyond is a 400, so that no request can cost the others."""

from typing import Final

MAX_SOURCE_BYTES: Final = 262_144
"""Of a schema (as JSON), a grammar, or all choices together."""
MAX_SUBSCHEMAS: Final = 4_096
MAX_DEPTH: Final = 64
"""How deep schemas, groups and tags may be nested."""
MAX_ENUM_VALUES: Final = 4_096
MAX_REPEAT: Final = 65_536
"""The largest count of a repetition: maxItems, maxLength, {m,n}."""
MAX_REGEX_CHARS: Final = 8_192
MAX_OPTIONAL_PARTS: Final = 64
"""Of a repeated sequence that may be empty altogether: it grows with their square."""
MAX_NODES: Final = 50_000
"""Of a whole grammar, counting a node wherever it is printed."""
MAX_RULES: Final = 4_096
MAX_AUTOMATON_STATES: Final = 4_096
"""Of an automaton that two conditions on one text make, such as a pattern and a length."""
MAX_COMPILE_S: Final = 3.0
"""How long it may take to make a grammar,"""
MAX_COMPILE_STEPS: Final = 4_000_000
"""and in how many steps: parts made or looked at."""
MAX_MATCH_STATES: Final = 4_096
"""In how many ways at once a text may be read."""

INTEGER_DIGITS: Final = 18
"""A weak model must not write digits for ever: the most digits before the point,"""
FRACTION_DIGITS: Final = 16
"""behind it,"""
EXPONENT_DIGITS: Final = 2
"""and of an exponent."""
