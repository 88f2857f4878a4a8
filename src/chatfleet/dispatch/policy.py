"""Which worker gets a request. Pure decisions."""

from collections.abc import Sequence
from random import Random

from chatfleet.dispatch.view import Worker


def least_loaded(workers: Sequence[Worker], rng: Random) -> Worker:
    """The worker with the fewest requests of this gateway; among equals, any. `workers` is not empty."""
    fewest = min(worker.in_flight for worker in workers)
    return rng.choice([worker for worker in workers if worker.in_flight == fewest])
