"""Consistent hashing: every key has a place on a ring, and belongs to the worker whose point comes next.

Source: Karger et al., "Consistent Hashing and Random Trees" (1997).
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from typing import Final

POINTS: Final = 128
"""Of a worker of speed 1: shares of the keys then differ by about 9%."""

MAX_POINTS: Final = 8 * POINTS


class HashRing:
    """Workers by id, with as many points each as their speeds ask for. The same in every process."""

    def __init__(self) -> None:
        self._points: list[tuple[int, str]] = []
        self._counts: dict[str, int] = {}

    def update(self, speeds: Mapping[str, float]) -> None:
        """Take in these workers, where they are new or have another speed."""
        counts = {worker_id: max(1, min(round(POINTS * speed), MAX_POINTS)) for worker_id, speed in speeds.items()}
        new = {worker_id: count for worker_id, count in counts.items() if self._counts.get(worker_id) != count}
        if new:
            self._drop(new.keys())
            self._counts.update(new)
            self._points += [
                (_position(f"{worker_id}#{number}".encode()), worker_id)
                for worker_id, count in new.items()
                for number in range(count)
            ]
            self._points.sort()

    def retain(self, worker_ids: Collection[str]) -> None:
        """Forget all other workers."""
        if gone := self._counts.keys() - set(worker_ids):
            self._drop(gone)

    def around(self, key: bytes) -> Iterator[str]:
        """Ids of workers from the key's place on, once around; each comes several times."""
        points = self._points
        start = bisect_left(points, (_position(key), ""))
        for index in range(start - len(points), start):
            yield points[index][1]

    def _drop(self, worker_ids: Collection[str]) -> None:
        if any(worker_id in self._counts for worker_id in worker_ids):
            self._points = [point for point in self._points if point[1] not in worker_ids]
            for worker_id in worker_ids:
                self._counts.pop(worker_id, None)


def _position(key: bytes) -> int:
    """A place on the ring, of 64 bits."""
    return int.from_bytes(blake2b(key, digest_size=8).digest())
