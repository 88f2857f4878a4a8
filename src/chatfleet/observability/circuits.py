"""The circuit breakers that a gateway has before its workers, as numbers."""

from collections.abc import Iterable
from typing import Final

import msgspec

MAX_CIRCUITS: Final = 1024
"""Workers that are told apart; all further ones are counted as one without a name."""


class CircuitNumbers(msgspec.Struct):
    """`worker` is its URL, `model_name` the model where it serves just one.

    `state` is of this moment: 0 closed, 1 half-open, 2 open, and None where nothing is known of such a worker. `opened`
    only grows.
    """

    model_name: str
    worker: str
    state: int | None = None
    opened: int = 0


def merged(processes: Iterable[tuple[Iterable[CircuitNumbers], bool]]) -> list[CircuitNumbers]:
    """One for each model and worker, of several processes, each given with whether it is alive: the worst state that a
    living one tells, and the sum of what grows."""
    found: dict[tuple[str, str], CircuitNumbers] = {}
    for circuits, alive in processes:
        for one in circuits:
            key = (one.model_name, one.worker)
            if key not in found and len(found) >= MAX_CIRCUITS:
                key = ("", "")
            sum_ = found.setdefault(key, CircuitNumbers(*key))
            sum_.opened += one.opened
            if alive and one.state is not None:
                sum_.state = max(one.state, sum_.state or 0)
    return list(found.values())
