"""How long requests wait under each policy, and how much of their prompts is cached where they arrive: simulated.

No sockets and no clock: discrete events, the gateway's own policies and its own view of workers, and one seed. Eight
gateways share eight unequal workers. Each gateway knows its own requests, and of the rest what workers report: in the
head of every answer, and in heartbeats, which come by way of the controller and are seconds old. Some conversations
are of clients that use two of the workers without a gateway; they are not counted.

A worker has slots for requests. What gets a slot is prefilled, one after the other, without the part of its prompt
that the worker's bounded prefix cache holds; then it decodes beside the others. Conversations share system prompts,
grow turn by turn, and every turn comes to any of the gateways.

    python benchmarks/routing/simulate.py
"""

import argparse
import heapq
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Final

from chatfleet.core.fleet import ALIVE_INTERVAL_S, HEARTBEAT_INTERVAL_S, ModelInfo, WorkerInfo
from chatfleet.dispatch.policies import POLICY_NAMES, Affinity, Policies, Policy
from chatfleet.dispatch.view import Worker

GATEWAYS: Final = 8
SPEEDS: Final = (2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.75)
SLOTS: Final = 16
PREFILL_TOKENS_PER_S: Final = 4000.0
TOKEN_S: Final = 0.02
CACHE_TOKENS: Final = 60_000
BLOCK_TOKENS: Final = 16
NETWORK_S: Final = 0.001

CONVERSATIONS_PER_S: Final = 5.0
DIRECT_SHARE: Final = 0.15
DIRECT_WORKERS: Final = ("w3", "w4")
MEAN_TURNS: Final = 6
MEAN_THINKING_S: Final = 6.0
SYSTEM_PROMPTS: Final = 24
MEAN_ANSWER_TOKENS: Final = 120
SIMULATED_S: Final = 300.0
WARM_UP_S: Final = 60.0

Block = tuple[str, int]
"""BLOCK_TOKENS tokens of a text, by the text's name and their place in it."""


@dataclass(eq=False)
class Conversation:
    session: str
    prompt: list[Block]
    turns_left: int
    worker: "SimulatedWorker | None"
    """That of a client which has no gateway."""

    def add(self, tokens: int) -> None:
        own = sum(name == self.session for name, _ in self.prompt)
        self.prompt += [(self.session, own + index) for index in range(max(1, tokens // BLOCK_TOKENS))]


@dataclass(eq=False)
class Request:
    conversation: Conversation
    prompt: list[Block]
    answer_tokens: int
    view: Worker | None
    arrived_s: float
    cached_blocks: int = 0

    def worker_lost(self) -> None:
        raise AssertionError("no worker dies here")


class SimulatedWorker:
    """Slots, a queue before them, one prefill at a time, and a prefix cache that forgets what was unused longest."""

    def __init__(self, info: WorkerInfo, simulation: "Simulation") -> None:
        self.info = info
        self._simulation = simulation
        self._running: set[Request] = set()
        self._waiting: OrderedDict[Request, None] = OrderedDict()
        self._prefilled_at = 0.0
        self._cache: OrderedDict[Block, None] = OrderedDict()

    @property
    def load(self) -> int:
        return len(self._running) + len(self._waiting)

    def take(self, request: Request) -> None:
        self._waiting[request] = None
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < SLOTS:
            request, _ = self._waiting.popitem(last=False)
            self._running.add(request)
            request.cached_blocks = self._look_up(request.prompt)
            tokens = (len(request.prompt) - request.cached_blocks) * BLOCK_TOKENS
            begins_at = max(self._simulation.now, self._prefilled_at)
            self._prefilled_at = begins_at + tokens / PREFILL_TOKENS_PER_S / self.info.speed
            self._simulation.at(self._prefilled_at, partial(self._first_token, request))

    def _look_up(self, prompt: list[Block]) -> int:
        """How many leading blocks are cached. From now on all are."""
        cached = next((index for index, block in enumerate(prompt) if block not in self._cache), len(prompt))
        for block in reversed(prompt):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > CACHE_TOKENS // BLOCK_TOKENS:
            self._cache.popitem(last=False)
        return cached

    def _first_token(self, request: Request) -> None:
        simulation = self._simulation
        simulation.answered(request, self.load)
        decoding_s = request.answer_tokens * TOKEN_S / self.info.speed
        simulation.at(simulation.now + decoding_s, lambda: self._end(request))

    def _end(self, request: Request) -> None:
        self._running.discard(request)
        self._fill()
        self._simulation.ended(request)


@dataclass(eq=False)
class Gateway:
    views: list[Worker]
    policy: Policy


@dataclass
class Result:
    """Seconds until the first token of each request, and how much of the prompts was cached."""

    waits_s: list[float] = field(default_factory=list)
    prompt_blocks: int = 0
    cached_blocks: int = 0

    def add(self, other: "Result") -> None:
        self.waits_s += other.waits_s
        self.prompt_blocks += other.prompt_blocks
        self.cached_blocks += other.cached_blocks

    def row(self, name: str) -> str:
        p50, p99 = statistics.median(self.waits_s), statistics.quantiles(self.waits_s, n=100)[98]
        return f"| {name} | {1000 * p50:.0f} ms | {1000 * p99:.0f} ms | {self.cached_blocks / self.prompt_blocks:.0%} |"


class Simulation:
    """One policy under one seed: the same conversations whatever the policy."""

    def __init__(self, policy_name: str, seed: int, *, with_headers: bool = True, with_heartbeats: bool = True) -> None:
        self.now = 0.0
        self.result = Result()
        self._traffic = Random(f"traffic {seed}")
        self._with_headers = with_headers
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        infos = [
            WorkerInfo(worker_id=f"w{index}", url=f"http://w{index}:1", models=(ModelInfo(id="m"),), speed=speed)
            for index, speed in enumerate(SPEEDS)
        ]
        self._workers = {info.worker_id: SimulatedWorker(info, self) for info in infos}
        self._gateways = [
            Gateway([Worker(info) for info in infos], Policies(policy_name, {}, Random(f"{index} {seed}")).of("m"))
            for index in range(GATEWAYS)
        ]
        self._told = dict.fromkeys(self._workers, (0.0, 0))  # to the controller: when, and what load
        if with_heartbeats:
            for worker in self._workers.values():
                self._every(HEARTBEAT_INTERVAL_S, partial(self._heartbeat, worker))
            for gateway in self._gateways:
                self._every(ALIVE_INTERVAL_S, partial(self._tell, gateway))
        self._next_conversation()

    def at(self, moment_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment_s, next(self._order), act))

    def run(self) -> Result:
        """To its end; what came in WARM_UP_S is left out."""
        while self._events and self._events[0][0] < SIMULATED_S:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.result

    def answered(self, request: Request, load: int) -> None:
        """The head of the answer leaves, with the first token."""
        view = request.view
        if view is None:
            return
        if request.arrived_s > WARM_UP_S:
            self.result.waits_s.append(self.now - request.arrived_s)
            self.result.prompt_blocks += len(request.prompt)
            self.result.cached_blocks += request.cached_blocks
        if self._with_headers:
            self.at(self.now + NETWORK_S, lambda: view.report(load, self.now))

    def ended(self, request: Request) -> None:
        if request.view is not None:
            request.view.end(request)
        conversation = request.conversation
        conversation.turns_left -= 1
        if conversation.turns_left > 0:
            conversation.add(request.answer_tokens)
            thinking_s = self._traffic_of(conversation).expovariate(1 / MEAN_THINKING_S)
            self.at(self.now + thinking_s, lambda: self._ask(conversation))

    def _next_conversation(self) -> None:
        rng = self._traffic
        system = min(int(rng.paretovariate(0.8)), SYSTEM_PROMPTS)
        length = 200 + (system * 7919) % 1800
        prompt = [(f"system {system}", index) for index in range(length // BLOCK_TOKENS)]
        turns = 1 + int(rng.expovariate(1 / MEAN_TURNS))
        direct = self._workers[rng.choice(DIRECT_WORKERS)] if rng.random() < DIRECT_SHARE else None
        conversation = Conversation(f"user-{rng.random()}", prompt, turns, direct)
        self.at(self.now, lambda: self._ask(conversation))
        self.at(self.now + rng.expovariate(CONVERSATIONS_PER_S), self._next_conversation)

    def _traffic_of(self, conversation: Conversation) -> Random:
        return Random(f"{conversation.session} {conversation.turns_left}")

    def _ask(self, conversation: Conversation) -> None:
        rng = self._traffic_of(conversation)
        conversation.add(int(rng.expovariate(1 / 60)))
        gateway = rng.choice(self._gateways)
        request = Request(
            conversation, list(conversation.prompt), 1 + int(rng.expovariate(1 / MEAN_ANSWER_TOKENS)), None, self.now
        )
        worker = conversation.worker
        if worker is None:
            prefix = b"".join(map(block_bytes, conversation.prompt)) if gateway.policy.uses_prefix else b""
            view = gateway.policy.choose(gateway.views, Affinity(prefix, conversation.session), self.now)
            view.begin(request)
            request.view, worker = view, self._workers[view.info.worker_id]
        self.at(self.now + NETWORK_S, lambda: worker.take(request))

    def _heartbeat(self, worker: SimulatedWorker) -> None:
        self._told[worker.info.worker_id] = self.now, worker.load

    def _tell(self, gateway: Gateway) -> None:
        for view in gateway.views:
            heard_s, load = self._told[view.info.worker_id]
            if self.now - heard_s <= ALIVE_INTERVAL_S:
                view.report(load, self.now)

    def _every(self, interval_s: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.at(self.now + interval_s, again)

        self.at(self._traffic.uniform(0, interval_s), again)


_made: dict[Block, bytes] = {}


def block_bytes(block: Block) -> bytes:
    """The block as text: 4 bytes a token."""
    if block not in _made:
        _made[block] = blake2b(repr(block).encode(), digest_size=2 * BLOCK_TOKENS).hexdigest().encode()
    return _made[block]


def row(name: str, note: str = "", *, seeds: int, with_headers: bool = True, with_heartbeats: bool = True) -> str:
    total = Result()
    for seed in range(seeds):
        total.add(Simulation(name, seed, with_headers=with_headers, with_heartbeats=with_heartbeats).run())
    return total.row(name + note)


def rows(seeds: int) -> Iterator[str]:
    yield "| policy | wait p50 | wait p99 | of the prompts cached |"
    yield "|---|---|---|---|"
    for name in POLICY_NAMES:
        yield row(name, seeds=seeds)
    for name in ("power_of_two", "shortest_queue"):
        yield row(name, ", by heartbeat alone", seeds=seeds, with_headers=False)
        yield row(name, ", by header alone", seeds=seeds, with_heartbeats=False)
        yield row(name, ", no reports", seeds=seeds, with_headers=False, with_heartbeats=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each policy, together in its row (default: 3)")
    for line in rows(parser.parse_args().seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
