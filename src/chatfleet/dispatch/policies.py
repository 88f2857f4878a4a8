"""Which worker gets a request. Pure decisions: no clock, no sockets, and chance from an injected Random.

Workers that have just failed, or whose circuit is open, are taken only where there is no other. What is compared is
`cost`: how long a request would wait at a worker, in units of one request at a worker of speed 1.
"""

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from random import Random
from typing import Final, NamedTuple, Protocol

from chatfleet.dispatch.breaker import CircuitState
from chatfleet.dispatch.hash_ring import HashRing
from chatfleet.dispatch.prefix_tree import BLOCK_BYTES, MAX_KEY_BYTES, PrefixTree
from chatfleet.dispatch.view import Worker

DEFAULT_POLICY: Final = "power_of_two"
MAX_MODELS: Final = 1024
MAX_SESSION_CHARS: Final = 1024

BUSIER_TIMES: Final = 2.0
BUSIER_BY: Final = 2.0
"""A worker is much busier than another when its cost is over BUSIER_TIMES the other's and BUSIER_BY more."""

KNOWN_SHARE: Final = 0.4
"""Of a prompt: what is known of it decides from here on. The simulation's best, of 0 to 0.95."""


class Affinity(NamedTuple):
    """What ties a request to earlier ones: the raw JSON of its `messages`, `prompt` or `input`, and whose it is. Each
    is empty where there is none, or where the policy does not ask for it."""

    prefix: bytes = b""
    session: str = ""


class Policy(Protocol):
    """Chooses among the workers of one model."""

    uses_prefix: bool
    uses_session: bool

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        """One of `workers`, which are not empty. `now` is in monotonic seconds."""


def cost(worker: Worker, now: float) -> float:
    """What one request more would find at a worker."""
    return (worker.load(now) + 1) / worker.info.speed


def _willing(workers: Sequence[Worker], now: float) -> Sequence[Worker]:
    """Those to choose from: never none, for an attempt that fails costs less than one that nobody makes."""
    return [worker for worker in workers if worker.circuit.avoid_until <= now] or _least_bad(workers)


def _least_bad(workers: Sequence[Worker]) -> Sequence[Worker]:
    """Where all are avoided: those with a closed circuit, else with a half-open one, else the next to be probed."""
    state = min(worker.circuit.state for worker in workers)
    if state is CircuitState.OPEN:
        return [min(workers, key=lambda worker: worker.circuit.probe_at)]
    return [worker for worker in workers if worker.circuit.state is state]


class _Base:
    uses_prefix = False
    uses_session = False

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        raise NotImplementedError

    def retain(self, worker_ids: Collection[str]) -> None:
        """Forget all other workers."""


class RoundRobin(_Base):
    """One after the other; each gateway begins somewhere else."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._turn = rng.randrange(2**16)

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        self._turn += 1
        for step in range(len(workers)):
            worker = workers[(self._turn + step) % len(workers)]
            if worker.circuit.avoid_until <= now:
                self._turn += step
                return worker
        least_bad = _least_bad(workers)
        return least_bad[self._turn % len(least_bad)]


class RandomChoice(_Base):
    """Any of them."""

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        return workers[0] if len(workers) == 1 else self._rng.choice(_willing(workers, now))


class Lottery(_Base):
    """Any of them, the faster the likelier."""

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        if len(workers) == 1:
            return workers[0]
        willing = _willing(workers, now)
        return self._rng.choices(willing, [worker.info.speed for worker in willing])[0]


class ShortestQueue(_Base):
    """The one of the lowest cost; among equals, any."""

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        if len(workers) == 1:
            return workers[0]
        willing = _willing(workers, now)
        costs = [cost(worker, now) for worker in willing]
        lowest = min(costs)
        return self._rng.choice([worker for worker, its in zip(willing, costs, strict=True) if its == lowest])


class PowerOfTwo(_Base):
    """The better one of two drawn at random.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001). Gateways that know little of
    each other do not all run to the same worker, as they do to the one that looks least busy.
    """

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        count = len(workers)
        if count == 1:
            return workers[0]
        draw = self._rng.random
        first = int(draw() * count)
        second = int(draw() * (count - 1))
        one, other = workers[first], workers[second if second < first else second + 1]
        if one.circuit.avoid_until > now or other.circuit.avoid_until > now:
            willing = _willing(workers, now)
            return min(self._rng.sample(willing, min(2, len(willing))), key=lambda worker: cost(worker, now))
        return other if cost(other, now) < cost(one, now) else one


class _WorkerRing:
    """A hash ring of the workers that it was shown last."""

    def __init__(self) -> None:
        self._ring = HashRing()
        self._seen: Sequence[Worker] = ()
        self._by_id: dict[str, Worker] = {}

    def show(self, workers: Sequence[Worker]) -> Mapping[str, Worker]:
        """The workers by id. Costs next to nothing for the very list that it was shown before."""
        if workers is not self._seen:
            self._seen = workers
            self._by_id = {worker.info.worker_id: worker for worker in workers}
            self._ring.update({worker_id: worker.info.speed for worker_id, worker in self._by_id.items()})
        return self._by_id

    def owner(self, key: bytes, among: Container[str], now: float) -> Worker | None:
        """The first worker from the key's place on that is `among` these and not avoided."""
        for worker_id in self._ring.around(key):
            if worker_id in among and (worker := self._by_id.get(worker_id)) and worker.circuit.avoid_until <= now:
                return worker
        return None

    def retain(self, worker_ids: Collection[str]) -> None:
        self._ring.retain(worker_ids)
        self._seen, self._by_id = (), {}


class Session(_Base):
    """Requests of one session go to one worker, by consistent hashing: a worker that comes or goes moves only its own
    share of the sessions. The next on the ring takes over for one that is avoided; requests without a session go by
    power_of_two."""

    uses_session = True

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._ring = _WorkerRing()
        self._by_load = PowerOfTwo(rng)

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        if not affinity.session or len(workers) == 1:
            return self._by_load.choose(workers, affinity, now)
        key = affinity.session[:MAX_SESSION_CHARS].encode("utf-8", "replace")
        by_id = self._ring.show(workers)
        return self._ring.owner(key, by_id, now) or self._by_load.choose(workers, affinity, now)

    def retain(self, worker_ids: Collection[str]) -> None:
        self._ring.retain(worker_ids)


class PrefixAware(_Base):
    """Requests that share a prefix go where it was sent before, unless that worker is much busier than the one that
    power_of_two would take.

    Where the known part is less than KNOWN_SHARE of the prompt, any worker will do for it, else one of those that had
    it last. Among them a hash decides, of the first block that is not known: so gateways that have never seen each
    other's requests send the turns of a conversation to the same worker.
    """

    uses_prefix = True

    def __init__(self, rng: Random, tree: PrefixTree) -> None:
        super().__init__(rng)
        self._tree = tree
        self._ring = _WorkerRing()
        self._by_load = PowerOfTwo(rng)

    def choose(self, workers: Sequence[Worker], affinity: Affinity, now: float) -> Worker:
        if len(workers) == 1:
            return workers[0]
        prefix = affinity.prefix
        chosen = self._by_load.choose(workers, affinity, now)
        if len(prefix) >= BLOCK_BYTES:
            favourite = self._favourite(workers, prefix, now)
            if favourite is not None and not is_much_busier(favourite, chosen, now):
                chosen = favourite
            self._tree.insert(prefix, chosen.info.worker_id)
        return chosen

    def retain(self, worker_ids: Collection[str]) -> None:
        self._ring.retain(worker_ids)

    def _favourite(self, workers: Sequence[Worker], prefix: bytes, now: float) -> Worker | None:
        by_id = self._ring.show(workers)
        match = self._tree.match(prefix)
        known = match.matched_bytes
        first_unknown = prefix[known : known + BLOCK_BYTES]
        if known >= KNOWN_SHARE * min(len(prefix), MAX_KEY_BYTES):
            for holders in match.holders():
                willing = [id for id in holders if (worker := by_id.get(id)) and worker.circuit.avoid_until <= now]
                if len(willing) == 1:
                    return by_id[willing[0]]
                if willing:
                    return self._ring.owner(first_unknown, willing, now)
        return self._ring.owner(first_unknown, by_id, now)


def is_much_busier(worker: Worker, other: Worker, now: float) -> bool:
    return cost(worker, now) > BUSIER_TIMES * cost(other, now) + BUSIER_BY


_KINDS: Final[Mapping[str, Callable[[Random, PrefixTree], _Base]]] = {
    "power_of_two": lambda rng, _: PowerOfTwo(rng),
    "shortest_queue": lambda rng, _: ShortestQueue(rng),
    "lottery": lambda rng, _: Lottery(rng),
    "round_robin": lambda rng, _: RoundRobin(rng),
    "random": lambda rng, _: RandomChoice(rng),
    "prefix_aware": PrefixAware,
    "session": lambda rng, _: Session(rng),
}
POLICY_NAMES: Final = tuple(_KINDS)


class Policies:
    """The policy of every model, made when it is first asked for; beyond MAX_MODELS the first made is forgotten.

    `default_name` and the values of `by_model` are among POLICY_NAMES. All models share one tree of prefixes, so that
    its bounds are those of the process.
    """

    def __init__(self, default_name: str, by_model: Mapping[str, str], rng: Random) -> None:
        self._default_name = default_name
        self._by_model = by_model
        self._rng = rng
        self._tree = PrefixTree()
        self._made: dict[str, _Base] = {}

    def of(self, model: str) -> Policy:
        """The same object for a model each time."""
        policy = self._made.get(model)
        if policy is None:
            if len(self._made) >= MAX_MODELS:
                del self._made[next(iter(self._made))]
            policy = self._made[model] = _KINDS[self._by_model.get(model, self._default_name)](self._rng, self._tree)
        return policy

    def retain(self, worker_ids: Collection[str]) -> None:
        """Forget what was kept of workers that are gone. To be called when the fleet has changed."""
        self._tree.retain(worker_ids)
        for policy in self._made.values():
            policy.retain(worker_ids)
