"""A fleet under load to which bad things happen, and what came of every request.

All of it is drawn from a seed: which requests each client sends, and what goes wrong when. How the two meet is left to
the machine, so a run with the same seed is alike and not the same.
"""

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from support.chaos_answers import Answer, Refused
from support.chaos_clients import Client, Connection, SdkClient, Tally, run_clients
from support.chaos_fleet import ChaosFleet, FleetPlan, Part
from support.chaos_requests import MODEL, Ask, greedy_asks, known_requests, simulated_asks
from support.chaos_schedule import WIRE_KINDS, Kind, Rates, draw_schedule
from support.metrics import parsed
from support.processes import WorkerProcess

_START_S: Final = 90.0
_END_S: Final = 40.0
_WATCHDOG_S: Final = 60.0
_SETTLING_S: Final = 5
_SHOWN_PROBLEMS: Final = 30
_SORT_CHARS: Final = 100
_GATEWAY_ARGUMENTS: Final = (
    *("--connect-timeout", "2", "--first-event-timeout", "10", "--stall-timeout", "2"),
    *("--max-replays", "10", "--drain-timeout", "40"),
)


@dataclass(frozen=True)
class Plan:
    """`clients` ask at once, `sdk_clients` of them through OpenAI's own client. `worker_arguments` are those of the
    disturbed workers, `calm_arguments` what another takes for the same answers."""

    seconds: float
    rates: Rates
    fleet: FleetPlan
    clients: int
    sdk_clients: int
    asks: Sequence[Ask]
    calm_arguments: Sequence[str]


def simulated_plan(seconds: float = 60.0) -> Plan:
    """A hundred streams of seconds each on the simulated engine, and everything that can go wrong."""
    engine = ("--engine", "simulated", "--max-concurrency", "256")
    return Plan(
        seconds=seconds,
        rates=Rates(workers_s=3.0, wire_s=0.4, gateways_s=8.0, controllers_s=5.0, blackouts=seconds >= 45),
        fleet=FleetPlan(
            workers=3,
            gateways=2,
            controllers=2,
            worker_arguments=(*engine, "--sim-itl-ms", "40", "--drain-timeout", "4"),
            gateway_arguments=_GATEWAY_ARGUMENTS,
            retry_s=5.0,
        ),
        clients=100,
        sdk_clients=2,
        asks=simulated_asks(),
        calm_arguments=engine,
    )


def openvino_plan(seconds: float = 10.0) -> Plan:
    """A few greedy streams of the bundled model, whose tokens are the same wherever they are computed."""
    engine = ("--deterministic", "--kv-cache-gb", "0.2")
    return Plan(
        seconds=seconds,
        rates=Rates(workers_s=2.0, wire_s=0.5, gateways_s=8.0, controllers_s=5.0, blackouts=False),
        fleet=FleetPlan(
            workers=3,
            gateways=2,
            controllers=2,
            worker_arguments=engine,
            gateway_arguments=_GATEWAY_ARGUMENTS,
            retry_s=10.0,
        ),
        clients=8,
        sdk_clients=1,
        asks=greedy_asks(),
        calm_arguments=engine,
    )


@dataclass
class Report:
    """What came of a run. `problems` is empty where it went as it must."""

    seed: int
    plan: Plan
    tally: Tally = field(default_factory=Tally)
    happened: Counter[Kind] = field(default_factory=Counter)
    spoilt: Counter[Kind] = field(default_factory=Counter)
    resumed: int = 0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    timeline: Sequence[tuple[float, str]] = ()
    logs: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """The counts, a line each."""
        tally = self.tally
        return "\n".join(
            (
                f"chaos, seed {self.seed}: {self.plan.clients} clients for {self.plan.seconds:g} s, "
                f"{self.took_s:.0f} s in all",
                f"  complete and identical: {_counts(tally.complete)}; the slowest took {tally.slowest_s:.1f} s",
                f"  streams that another worker was asked to go on with: {self.resumed}",
                f"  excused: {_counts(tally.excused)}",
                f"  incidents: {_counts(self.happened)}",
                f"  connections spoilt: {_counts(self.spoilt)}",
                f"  problems: {len(self.problems)}",
            )
        )

    def __str__(self) -> str:
        """The counts; where there are problems, these, what happened to the parts, and the ends of the logs."""
        sorts = Counter(problem.rpartition(": ")[2][:_SORT_CHARS] for problem in self.problems)
        lines = [self.summary(), *(f"    {count} x {sort}" for sort, count in sorts.most_common())]
        lines += self.problems[:_SHOWN_PROBLEMS]
        if self.problems:
            lines += [f"{at_s:8.1f} s  {news}" for at_s, news in self.timeline if not news.startswith(WIRE_KINDS)]
            lines += [f"--- {name}\n{log}" for name, log in self.logs.items()]
            lines.append(f"Run it again: python tests/chaos/run.py --seed {self.seed} --seconds {self.plan.seconds:g}")
        return "\n".join(lines)


def _counts(counter: Counter[str] | Counter[Kind]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def run_chaos(plan: Plan, seed: int, folder: Path) -> Report:
    """Logs and state go to `folder`. Whatever happens, no process outlives this."""
    began = time.monotonic()
    with WorkerProcess("--model-name", MODEL, *plan.calm_arguments) as calm, asyncio.Runner() as runner:
        known = runner.run(known_requests(list(plan.asks), _Asker(calm.url).ask))
    report = Report(seed, plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        fleet = ChaosFleet(plan.fleet, folder)
        kinds = [SdkClient] * plan.sdk_clients + [Client] * (plan.clients - plan.sdk_clients)
        clients = [kind(number, seed, known, fleet, report.tally) for number, kind in enumerate(kinds)]
        try:
            runner.run(_run(fleet, clients, report))
        finally:
            fleet.kill()
    report.took_s = time.monotonic() - began
    report.problems = [*report.tally.problems, *fleet.problems, *report.problems]
    report.happened, report.timeline = fleet.happened, fleet.timeline
    for wire in fleet.wires:
        report.spoilt += wire.spoilt
        report.resumed += wire.resumed
    report.logs = {part.name: part.tail() for part in fleet.parts}
    return report


class _Asker:
    """Asks one endpoint, one request after another."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def ask(self, ask: Ask) -> Answer | Refused:
        connection = await Connection.open(self._url)
        try:
            return ask.read(*await connection.ask(ask.http))
        finally:
            connection.close()


async def _run(fleet: ChaosFleet, clients: Sequence[Client], report: Report) -> None:
    plan = report.plan
    try:
        async with asyncio.timeout(_START_S + plan.seconds + _END_S + _WATCHDOG_S):
            async with asyncio.timeout(_START_S):
                await fleet.start()
            is_over = asyncio.Event()
            asking = asyncio.create_task(run_clients(clients, is_over, _END_S, report.tally))
            try:
                await _suffer(fleet, report)
                is_over.set()
                await asking
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            report.problems += await _left_behind(fleet)
    except TimeoutError:
        report.problems.append("the run did not come to its end in time")
    finally:
        await fleet.close()
    report.problems += await asyncio.to_thread(_tracebacks, fleet.parts)


async def _suffer(fleet: ChaosFleet, report: Report) -> None:
    """All incidents of the schedule that could begin in time, to their ends."""
    plan = report.plan
    schedule = draw_schedule(
        report.seed,
        plan.seconds,
        plan.rates,
        workers=plan.fleet.workers,
        gateways=plan.fleet.gateways,
        controllers=plan.fleet.controllers,
    )
    begin = time.monotonic()
    suffering: list[asyncio.Task[None]] = []
    for incident in schedule:
        await asyncio.sleep(max(0.0, begin + incident.at_s - time.monotonic()))
        suffering.append(asyncio.create_task(fleet.suffer(incident)))
    await asyncio.sleep(max(0.0, begin + plan.seconds - time.monotonic()))
    fleet.suffer_no_more()
    for outcome in await asyncio.gather(*suffering, return_exceptions=True):
        if isinstance(outcome, BaseException):
            trace = "".join(traceback.format_exception(outcome))
            report.problems.append(f"an incident went wrong itself: {trace}")


async def _left_behind(fleet: ChaosFleet) -> list[str]:
    """What parts still hold although every request has ended."""
    problems = []
    for gateway in fleet.gateways:
        if held := await _settled(fleet, gateway, "chatfleet:requests_in_flight"):
            problems.append(f"{gateway.name} still has {held:g} requests in flight")
    for worker in fleet.workers:
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            if held := await _settled(fleet, worker, name):
                problems.append(f"{worker.name} has {name} {held:g}")
    return problems


async def _settled(fleet: ChaosFleet, part: Part, name: str) -> float:
    """The number once it is zero, or after a while."""
    held = 0.0
    for _ in range(_SETTLING_S * 10):
        held = parsed(await fleet.scrape(part)).total(name)
        if not held:
            break
        await asyncio.sleep(0.1)
    return held


def _tracebacks(parts: Iterable[Part]) -> list[str]:
    problems = []
    for part in parts:
        _, trace, rest = part.log.read_text(errors="replace").partition("Traceback")
        if trace:
            problems.append(f"{part.name} logs a fault of its own: {rest[:3000]}")
    return problems
