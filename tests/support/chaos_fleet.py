"""A fleet of real processes at fixed addresses, each of which can be disturbed and comes back."""

import asyncio
import math
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import psutil

from support.chaos_requests import MODEL
from support.chaos_schedule import Incident, Kind
from support.chaos_wire import Wire

FREEZE_S: Final = 3.0
NEWS_S: Final = 3.0
"""How long it may take until all gateways know of a worker that is there again: where the only controller is just back
itself, the worker tries it every second, and so do the gateways."""

_PART: Final = Path(__file__).with_name("chaos_part.py")
_READY_S: Final = 60.0
_END_S: Final = 60.0
_LOG_TAIL_BYTES: Final = 6000
_FIRST_PORT, _LAST_PORT = 20000, 32000  # below those that systems give to outgoing connections


def choose_ports(count: int) -> list[int]:
    """Free ports that no outgoing connection will take while nobody listens there."""
    ports: list[int] = []
    rng = random.Random()
    while len(ports) < count:
        port = rng.randrange(_FIRST_PORT, _LAST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


@dataclass
class Part:
    """One command of the fleet. What its processes print goes to one log, one after another."""

    name: str
    port: int
    arguments: Sequence[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    killed_at: list[float] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    frozen_at: float = -math.inf
    """When it was frozen last."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def tail(self) -> str:
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")


@dataclass(frozen=True)
class FleetPlan:
    """`worker_arguments` and `gateway_arguments` are added to what the fleet itself needs. Where `retry_s` is over
    without a worker, a gateway gives a request up."""

    workers: int
    gateways: int
    controllers: int
    worker_arguments: Sequence[str]
    gateway_arguments: Sequence[str]
    retry_s: float


class Presence:
    """When which worker could answer: from when all gateways know of it until something happens to it."""

    def __init__(self, workers: int) -> None:
        self._down_since: list[float | None] = [0.0] * workers
        self._up: list[tuple[float, float]] = []
        self._up_since = [0.0] * workers

    def up(self, worker: int, now: float) -> None:
        if self._down_since[worker] is not None:
            self._down_since[worker], self._up_since[worker] = None, now

    def down(self, worker: int, now: float) -> None:
        if self._down_since[worker] is None:
            self._up.append((self._up_since[worker], now))
            self._down_since[worker] = now

    def all_down(self, start: float, end: float) -> bool:
        """Whether there was none at any time between."""
        if any(down is None and up < end for down, up in zip(self._down_since, self._up_since, strict=True)):
            return False
        return not any(up < end and down > start for up, down in self._up)


class ChaosFleet:
    """Started by `start`, ended by `close`, and whatever happens by `kill`, which needs no event loop.

    `problems` are what parts did that they must not; `happened` counts the incidents, and `timeline` has each with the
    seconds since the fleet was made.
    """

    def __init__(self, plan: FleetPlan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._logs = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._processes: set[asyncio.subprocess.Process] = set()
        ports = choose_ports(2 * plan.workers + plan.gateways + plan.controllers)
        self.controllers = [
            self._part(f"controller{number}", ports.pop(), self._controller_arguments(number))
            for number in range(plan.controllers)
        ]
        self.wires = [Wire(ports.pop(), ports.pop()) for _ in range(plan.workers)]
        self.workers = [
            self._part(f"worker{number}", wire.worker_port, self._worker_arguments(wire))
            for number, wire in enumerate(self.wires)
        ]
        self.gateways = [
            self._part(f"gateway{number}", ports.pop(), self._gateway_arguments()) for number in range(plan.gateways)
        ]
        self.gateway_urls = [part.url for part in self.gateways]
        self.presence = Presence(plan.workers)
        self.problems: list[str] = []
        self.happened: Counter[Kind] = Counter()
        self.timeline: list[tuple[float, str]] = []
        self.made_at = time.monotonic()
        self._disturbed: set[int] = set()
        self._blackouts = 0
        self._calmer = asyncio.Condition()
        self._gateway_permit = asyncio.Lock()
        self._controller_permit = asyncio.Lock()
        self._is_over = False
        self._endings: set[asyncio.Task[None]] = set()
        self._http: aiohttp.ClientSession | None = None

    @property
    def parts(self) -> list[Part]:
        return [*self.controllers, *self.workers, *self.gateways]

    def _part(self, name: str, port: int, arguments: Sequence[str]) -> Part:
        command = name.rstrip("0123456789")
        log = self._folder / f"{name}.log"
        self._files[name] = self._logs.enter_context(log.open("wb", buffering=0))
        return Part(name, port, (command, "--port", str(port), *arguments), log)

    def _controller_arguments(self, number: int) -> Sequence[str]:
        state = self._folder / f"controller{number}.json"
        return "--state-file", str(state), "--heartbeat-interval", "1", "--expiry", "6"

    def _controller_urls(self) -> Sequence[str]:
        return [option for part in self.controllers for option in ("--controller-url", part.url)]

    def _worker_arguments(self, wire: Wire) -> Sequence[str]:
        advertised = f"http://127.0.0.1:{wire.port}"
        return (
            *("--advertise-url", advertised, "--model-name", MODEL),
            *self._controller_urls(),
            *self._plan.worker_arguments,
        )

    def _gateway_arguments(self) -> Sequence[str]:
        return *self._controller_urls(), "--retry-timeout", f"{self._plan.retry_s:g}", *self._plan.gateway_arguments

    # Its beginning and its end

    async def start(self) -> None:
        """Raises AssertionError when a part does not come up."""
        self._http = aiohttp.ClientSession()
        await self._together(self._launch(part) for part in self.parts)
        await self._together(self._worker_came(number) for number in range(len(self.workers)))
        await self._together(self._until_ready(part) for part in (*self.controllers, *self.gateways))

    async def close(self) -> None:
        """End everything as an operator would."""
        for wire in self.wires:
            wire.close()
        for part in self.parts:
            self._thaw(part)
        if self._endings:  # a second signal would cut what drains
            await asyncio.wait(self._endings, timeout=15)
        alive = [process for process in self._processes if process.returncode is None]
        for process in alive:
            with suppress(ProcessLookupError):
                process.terminate()
        if alive:
            await asyncio.wait([asyncio.ensure_future(process.wait()) for process in alive], timeout=15)
        self.kill()
        for ending in self._endings:
            ending.cancel()
        await asyncio.gather(*self._endings, *(process.wait() for process in self._processes), return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def kill(self) -> None:
        """End what still runs, engines included, at once."""
        for process in self._processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self._logs.close()

    # What clients ask

    def gateway_killed_since(self, gateway: int, began: float) -> bool:
        return any(killed >= began for killed in self.gateways[gateway].killed_at)

    def no_worker_until(self, gateway: int, failed: float) -> bool:
        margin_s = 0.1 * self._plan.retry_s  # its clock began a little after the incident, and its news took a moment
        decided, frozen_at = failed, self.gateways[gateway].frozen_at
        if failed - frozen_at < FREEZE_S + NEWS_S:  # its time may have been over while it was frozen
            decided = max(frozen_at, failed - FREEZE_S - NEWS_S)
        spans_s = (decided + step * margin_s for step in range(1 + int((failed - decided) / margin_s)))
        retry_s = self._plan.retry_s - margin_s
        return any(self.presence.all_down(end - retry_s, end - margin_s) for end in (failed, *spans_s))

    # What happens to it

    def suffer_no_more(self) -> None:
        """What has not happened by now does not."""
        self._is_over = True

    async def suffer(self, incident: Incident) -> None:
        """Wait until it may happen, let it happen, and repair what is broken. At most all workers but one are
        disturbed at a time, except in a blackout, and one gateway, and one controller."""
        kind, target = incident.kind, incident.target
        match kind:
            case Kind.RESET | Kind.HALF_FRAME | Kind.GARBAGE | Kind.IDLE_GARBAGE:
                self._note(kind, self.workers[target])
                self.wires[target].spoil(kind, incident.draw)
            case Kind.SHORT_BLACKOUT | Kind.LONG_BLACKOUT:
                await self._blackout(kind)
            case Kind.KILL_GATEWAY | Kind.END_GATEWAY | Kind.FREEZE_GATEWAY:
                async with self._gateway_permit:
                    await self._disturb_gateway(kind, self.gateways[target])
            case Kind.KILL_CONTROLLER | Kind.END_CONTROLLER | Kind.FREEZE_CONTROLLER:
                async with self._controller_permit:
                    await self._disturb_controller(kind, self.controllers[target])
            case _:
                async with self._disturbing({target}, lambda: not self._blackouts and self._spares(target)):
                    await self._disturb_worker(kind, target)

    def _spares(self, target: int) -> bool:
        """Whether a worker is left undisturbed when this one is disturbed too."""
        return target not in self._disturbed and len(self._disturbed) < max(1, len(self.workers) - 1)

    @asynccontextmanager
    async def _disturbing(self, workers: set[int], may: Callable[[], bool]) -> AsyncIterator[None]:
        async with self._calmer:
            await self._calmer.wait_for(may)
            self._disturbed |= workers
        try:
            yield
        finally:
            async with self._calmer:
                self._disturbed -= workers
                self._calmer.notify_all()

    async def _disturb_worker(self, kind: Kind, number: int) -> None:
        if self._is_over:
            return
        part, wire = self.workers[number], self.wires[number]
        engine = await asyncio.to_thread(_engine_of, part.pid)
        self._note(kind, part)
        self.presence.down(number, time.monotonic())
        match kind:
            case Kind.KILL_WORKER:
                await self._kill(part, wire.refuse)
                await self._launch(part)
            case Kind.END_WORKER:
                await self._end(part)
                await self._launch(part)
            case Kind.FREEZE_WORKER:
                await self._freeze(part, part.pid)
            case Kind.KILL_ENGINE:
                os.kill(engine, signal.SIGKILL)
                await self._until(part, "/ready", lambda status: status != 200)
            case Kind.FREEZE_ENGINE:
                await self._freeze(part, engine)
        await self._worker_came(number)

    async def _blackout(self, kind: Kind) -> None:
        everyone = range(len(self.workers))
        self._blackouts += 1
        async with self._disturbing(set(everyone), lambda: not self._disturbed):
            if not self._is_over:
                self._note(kind)
                for number in everyone:
                    self.presence.down(number, time.monotonic())
                await self._together(
                    self._kill(part, wire.refuse) for part, wire in zip(self.workers, self.wires, strict=True)
                )
                if kind is Kind.LONG_BLACKOUT:
                    await asyncio.sleep(self._plan.retry_s + FREEZE_S)
                await self._together(map(self._launch, self.workers))
                await self._together(map(self._worker_came, everyone))
            self._blackouts -= 1

    async def _worker_came(self, number: int) -> None:
        """Open its wire as soon as it listens, and count on it once all gateways must know of it."""
        await self._until(self.workers[number], "/health", lambda status: status is not None)
        await self.wires[number].open()
        await self._until_ready(self.workers[number])
        await asyncio.sleep(NEWS_S)
        self.presence.up(number, time.monotonic())
        self._tell(f"{self.workers[number].name} is there")

    def _note(self, kind: Kind, part: Part | None = None) -> None:
        self.happened[kind] += 1
        self._tell(kind if part is None else f"{kind}: {part.name}")

    def _tell(self, news: str) -> None:
        self.timeline.append((time.monotonic() - self.made_at, news))

    async def _disturb_gateway(self, kind: Kind, part: Part) -> None:
        if self._is_over:
            return
        self._note(kind, part)
        match kind:
            case Kind.KILL_GATEWAY:
                await self._kill(part)
                await self._launch(part)
            case Kind.END_GATEWAY:  # its successor begins while it drains
                assert part.process is not None
                part.process.terminate()
                self._later(self._ended(part, part.process))
                await self._until_free(part)
                await self._launch(part)
            case Kind.FREEZE_GATEWAY:
                await self._freeze(part, part.pid)
        await self._until_ready(part)

    async def _disturb_controller(self, kind: Kind, part: Part) -> None:
        if self._is_over:
            return
        self._note(kind, part)
        match kind:
            case Kind.KILL_CONTROLLER:
                await self._kill(part)
                await self._launch(part)
            case Kind.END_CONTROLLER:
                await self._end(part)
                await self._launch(part)
            case Kind.FREEZE_CONTROLLER:
                await self._freeze(part, part.pid)
        await self._until_ready(part)
        await asyncio.sleep(NEWS_S)

    # The processes

    async def _launch(self, part: Part) -> None:
        environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "CHAOS_PARENT": str(os.getpid())}
        part.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_PART),
            *part.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._files[part.name],
            stderr=self._files[part.name],
            env=environment,
            start_new_session=True,
        )
        self._processes.add(part.process)

    async def _kill(self, part: Part, then: Callable[[], None] = lambda: None) -> None:
        assert part.process is not None
        part.killed_at.append(math.inf)  # it takes a moment to die, and until then connections still come about
        part.process.kill()
        then()
        await part.process.wait()
        part.killed_at[-1] = time.monotonic()

    async def _end(self, part: Part) -> None:
        assert part.process is not None
        part.process.terminate()
        await self._ended(part, part.process)

    async def _ended(self, part: Part, process: asyncio.subprocess.Process) -> None:
        """It has been told to stop, and must do so well."""
        try:
            async with asyncio.timeout(_END_S):
                status = await process.wait()
        except TimeoutError:
            self.problems.append(f"{part.name} was told to stop and still runs {_END_S:g} s later")
            process.kill()
            return
        if status != 0:
            self.problems.append(f"{part.name} was told to stop and ended with status {status}")

    async def _freeze(self, part: Part, pid: int) -> None:
        part.frozen.add(pid)
        part.frozen_at = time.monotonic()
        try:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(FREEZE_S)
        finally:
            self._thaw(part)

    def _thaw(self, part: Part) -> None:
        while part.frozen:
            with suppress(ProcessLookupError):
                os.kill(part.frozen.pop(), signal.SIGCONT)

    async def _until_ready(self, part: Part) -> None:
        path = "/health" if part in self.controllers else "/ready"
        await self._until(part, path, lambda status: status == 200)

    async def _until(self, part: Part, path: str, holds: Callable[[int | None], bool]) -> None:
        """Wait for such a status; None is no answer. Raises AssertionError when it never comes."""
        deadline = time.monotonic() + _READY_S
        while not holds(await self._status(part, path)):
            assert part.process is not None
            if part.process.returncode is not None:
                raise AssertionError(f"{part.name} has ended by itself:\n{await asyncio.to_thread(part.tail)}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{part.name} is not up again in {_READY_S:g} s")
            await asyncio.sleep(0.02)

    async def _status(self, part: Part, path: str) -> int | None:
        assert self._http is not None
        try:
            async with self._http.get(part.url + path, timeout=aiohttp.ClientTimeout(total=5)) as response:
                return response.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def scrape(self, part: Part) -> str:
        assert self._http is not None
        async with self._http.get(part.url + "/metrics") as response:
            return await response.text()

    async def _until_free(self, part: Part) -> None:
        """Wait until nobody listens there any more."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", part.port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.02)
        self.problems.append(f"{part.name} was told to stop and still listens {_END_S:g} s later")

    def _later(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    @staticmethod
    async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)


def _engine_of(worker_pid: int) -> int:
    (engine,) = psutil.Process(worker_pid).children()
    return engine.pid
