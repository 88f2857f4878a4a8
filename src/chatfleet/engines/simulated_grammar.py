"""What the simulated engine would say where a grammar decides what may be said.

It keeps to its script where it can, in strings and free text, and brings to its end what has one: strings after a few
words, lists and objects after a few members, and all of them at once after HASTE_TOKENS tokens. That an answer ends
within `max_tokens` is likely and not certain, for a grammar may ask for more. The choice depends on a hash, the
position and the tokens that are allowed, and on nothing else.
"""

from collections.abc import Sequence
from typing import Final

from chatfleet.engines.simulated_script import fraction, mix

HASTE_TOKENS: Final = 200
"""After so many tokens whatever can be closed is closed."""

_QUOTE: Final = ord('"')
_NEWLINE: Final = ord("\n")
_CLOSERS: Final = b'}]"'
_OPENERS: Final = b"{["
_DIGITS: Final = b"0123456789"
_END_OF_THINKING: Final = b"</think>"
"""Free text behind which something has to come is most often a reasoning."""
_ANY_TEXT: Final = 64
"""Where more tokens than that are allowed it is in a string or in free text."""
_STRING_END: Final = 1 / 16
_SCRIPTED: Final = 0.5
"""How often it keeps to the script where the choice is among few."""
_WEIGHTS: Final = {"}": 6.0, "]": 4.0, '"': 4.0, ",": 2.0, " ": 0.05, "\\": 0.01}
_END_WEIGHT: Final = 4.0


def allowed_tokens(mask: bytes, vocab_size: int) -> list[int]:
    """The tokens of a mask, as `Matcher.allowed` gives it."""
    bits = int.from_bytes(mask, "little")
    return [token_id for token_id in range(vocab_size) if bits >> token_id & 1]


def wanted_token(
    scripted: int, ends: Sequence[int], allowed: Sequence[int], key: int, position: int, *, is_complete: bool
) -> int:
    """One of `allowed`, of which there is one at least. `ends` are those of them that end the answer, `scripted` is
    what would be said without a grammar. `is_complete` says whether the grammar would let the answer end here."""
    hasty = position >= HASTE_TOKENS
    in_text = len(allowed) > _ANY_TEXT
    in_string = in_text and not is_complete and _NEWLINE not in allowed
    if in_string and _QUOTE in allowed:
        if hasty or fraction(key, 9, position) < _STRING_END:
            return _QUOTE
    elif in_string and hasty:  # its pattern asks for something, of which digits are the likeliest
        scripted = _DIGITS[mix(key, 9, position) % len(_DIGITS)]
    elif in_text and hasty and not is_complete:
        scripted = _END_OF_THINKING[(position - HASTE_TOKENS) % len(_END_OF_THINKING)]
    if in_text and scripted in allowed:
        return scripted
    if hasty and not in_text:
        closers: list[int] = [*ends, *_CLOSERS]
        if found := [token_id for token_id in closers if token_id in allowed]:
            return found[0]
    elif scripted in allowed and fraction(key, 9, position) < _SCRIPTED:
        return scripted
    weights = [_END_WEIGHT if token_id in ends else _weight(token_id, hasty=hasty) for token_id in allowed]
    point = fraction(key, 10, position) * sum(weights)
    for token_id, weight in zip(allowed, weights, strict=True):
        point -= weight
        if point < 0:
            return token_id
    return allowed[-1]


def _weight(token_id: int, *, hasty: bool) -> float:
    if token_id >= 128:
        return 1e-3
    if chr(token_id).isalnum():  # what separates leads on
        return 0.02 if hasty else 0.2
    if token_id in _OPENERS and hasty:
        return 1e-6
    return _WEIGHTS.get(chr(token_id), 1.0)
