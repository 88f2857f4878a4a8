"""When there is room again for those that a full queue turns away.

Pure: times are monotonic seconds that the caller gives.
"""

from typing import Final

MIN_S: Final = 0.1
MAX_S: Final = 60.0
"""OpenAI's clients wait as long as they are told up to this; told more, older ones come back within seconds."""

_GUESS_S: Final = 5.0
_ROUNDS: Final = 4
_MIN_REMEMBERED: Final = 16


class Promises:
    """How fast slots are given back, and the places that are promised to the refused.

    The rate is what was given back per second of use, over about the last _ROUNDS rounds of all `slots`. It begins as
    if each had been used once for _GUESS_S. Slots that are still in use count: were it the mean of what has ended, the
    first, short ones would promise too much.

    The k-th refused choice in a row is promised the k-th place, and half a queue more, though not over a round of all
    slots: who comes too early is refused again, and OpenAI's clients come three times in all; who comes a little late
    finds that others still wait, so no slot has stood idle.
    """

    def __init__(self, *, slots: int, max_queue: int, now: float) -> None:
        self._slots = slots
        self._margin = min(max_queue / 2, slots)
        self._keep = 1 - 1 / max(_MIN_REMEMBERED, _ROUNDS * slots)
        self._given_back = float(slots)
        self._used_s = _GUESS_S * slots
        self._in_use = 0
        self._counted_at = now
        self._owed = 0.0  # places, of promises that may still be claimed
        self._last_due = now

    def taken(self, now: float) -> None:
        """A slot is in use from now on."""
        self._count(now)
        self._in_use += 1

    def given_back(self, now: float) -> None:
        self._count(now)
        self._in_use -= 1
        self._used_s *= self._keep
        self._given_back = (self._given_back + 1) * self._keep
        self._owed = max(0.0, self._owed - 1)

    def retry_after_s(self, count: int, now: float) -> float:
        """In how many seconds `count` choices that are refused now may find room: MIN_S to MAX_S."""
        self._count(now)
        if now >= self._last_due:
            self._owed = 0.0
        self._owed += count
        per_s = self._slots * self._given_back / self._used_s
        wait_s = min(max((self._owed + self._margin) / per_s, MIN_S), MAX_S)
        self._last_due = max(self._last_due, now + wait_s)
        return wait_s

    def _count(self, now: float) -> None:
        self._used_s += self._in_use * (now - self._counted_at)
        self._counted_at = now
