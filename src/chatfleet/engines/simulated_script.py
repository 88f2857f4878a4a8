"""What the simulated engine says: hashes, its scripts of words, and the distribution at each of their positions.

`engines/simulated.py` says how an answer is made of them.
"""

import hashlib
import math
from array import array
from collections.abc import Iterable
from typing import Final

END_OF_SEQUENCE: Final = 257

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz "
_WORDS: Final = [
    "harbor",
    "lantern",
    "drift",
    "copper",
    "meadow",
    "signal",
    "ripple",
    "anchor",
    "velvet",
    "thunder",
    "maple",
    "orbit",
    "pepper",
    "glacier",
    "whisper",
    "cobalt",
    "tunnel",
    "feather",
    "saddle",
    "ember",
    "canyon",
    "bottle",
    "puzzle",
    "marble",
    "sparrow",
    "timber",
    "rocket",
    "willow",
    "blanket",
    "compass",
    "dragon",
    "ferry",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "needle",
    "ocean",
    "pillow",
    "quartz",
    "ribbon",
    "silver",
    "teapot",
    "umbrella",
    "valley",
    "window",
    "yellow",
    "the",
    "a",
    "of",
    "under",
    "near",
    "with",
    "over",
    "and",
    "some",
    "every",
]
SCRIPTED_LOGIT: Final = 10.0
"""The best there is."""
_LETTER_LOGIT: Final = 5.0
_LETTER_STEP: Final = 0.5
_EOS_LOGIT: Final = -5.0
_MIN_WORDS: Final = 12
_MORE_WORDS: Final = 60
_MASK: Final = 2**64 - 1


def mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64's finaliser, chained)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def fraction(*values: int) -> float:
    """A hash of integers as a number in [0, 1)."""
    return (mix(*values) >> 11) / 2**53


def hash_tokens(token_ids: Iterable[int]) -> int:
    digest = hashlib.blake2b(array("H", token_ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Script:
    """The endless text of one hash, and how much of it an undisturbed answer has."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._text = bytearray()
        self._words = 0
        self._word = 0
        self._sentence_starts = True
        natural_words = _MIN_WORDS + mix(key, 1) % _MORE_WORDS
        while self._words < natural_words:
            self._write_word(last=self._words == natural_words - 1)
        self.natural_length = len(self._text) - 1  # without the space after the last full stop

    def token(self, position: int) -> int:
        """The byte at a position."""
        while position >= len(self._text):
            self._write_word(last=False)
        return self._text[position]

    def _write_word(self, *, last: bool) -> None:
        draw = mix(self._key, 2, self._words)
        self._word = (self._word + 1 + draw % (len(_WORDS) - 1)) % len(_WORDS)  # never the same twice in a row
        word = _WORDS[self._word]
        ends = last or (draw >> 32) % 9 == 0
        self._text += (word.capitalize() if self._sentence_starts else word).encode()
        self._text += b". " if ends else b" "
        self._sentence_starts = ends
        self._words += 1


def base_logits(scripted: int, key: int, position: int) -> dict[int, float]:
    """The distribution before any setting: token to logit. Other tokens have no chance."""
    turn = mix(key, 3, position)
    count = len(_LETTERS)
    scored = {_LETTERS[(turn + 5 * rank) % count]: _LETTER_LOGIT - _LETTER_STEP * rank for rank in range(count)}
    scored[END_OF_SEQUENCE] = _EOS_LOGIT
    scored[scripted] = SCRIPTED_LOGIT
    return scored


def log_softmax(logits: dict[int, float]) -> list[tuple[int, float]]:
    """Tokens and their log probabilities, likeliest first, ties by token id."""
    ranked = sorted(logits.items(), key=lambda item: (-item[1], item[0]))
    best = ranked[0][1]
    normaliser = best + math.log(sum(math.exp(logit - best) for _, logit in ranked))
    return [(token_id, logit - normaliser) for token_id, logit in ranked]
