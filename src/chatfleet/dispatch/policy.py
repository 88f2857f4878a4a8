"""Which worker gets a request. Pure decisions."""

from collections.abc import Sequence
from random import Random

from chatfleet.dispatch.view import Worker


def least_loaded(workers: Sequence[Worker], now: float, rng: Random) -> Worker:
    """The worker with the fewest requests of this gateway, among those that have not just failed if there are any;
    among equals, any. `workers` is not empty."""

    def cost(worker: Worker) -> tuple[bool, int]:
        return worker.avoid_until > now, worker.in_flight

    lowest = min(map(cost, workers))
    return rng.choice([worker for worker in workers if cost(worker) == lowest])
