"""A fleet's status as tables, readable at 80 columns."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chatfleet.core.fleet import FleetStatus, WorkerStatus
from chatfleet.http.control import ControllerError

Report = tuple[str, FleetStatus | ControllerError]
"""A controller's URL and what it answered."""

_WORKER_CHARS = 30  # an id of ours has 23, a URL with an IPv4 address up to 28


def fleet_tables(reports: Sequence[Report]) -> RenderableType:
    """One table per controller, and below it what is wrong; a hint where there is no worker."""
    parts: list[RenderableType] = []
    for url, report in reports:
        if parts:
            parts.append(Text())
        parts.extend([_error(report)] if isinstance(report, ControllerError) else _fleet(url, report))
    return Group(*parts)


def printable(text: str) -> str:
    """Text of others without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def duration(seconds: float) -> str:
    """A time span in its largest unit, such as `12 s` or `3 min`."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _error(error: ControllerError) -> Text:
    return Text.assemble(("Error: ", "bold red"), printable(str(error)))


def _fleet(url: str, fleet: FleetStatus) -> list[RenderableType]:
    title = Text.assemble((printable(url), "bold"), f"  up {duration(fleet.uptime_s)}")
    if not fleet.workers:
        return [
            title,
            Text(
                "  No worker yet. Start one:\n"
                f"    chatfleet worker --controller-url {printable(url)}\n"
                "  or register a server that runs already:\n"
                f"    chatfleet register http://HOST:PORT --controller-url {printable(url)}"
            ),
        ]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    longest = max(max(len(worker.worker_id), len(worker.url)) for worker in fleet.workers)
    table.add_column("Worker", overflow="fold", width=min(longest, _WORKER_CHARS))
    table.add_column("Kind", no_wrap=True)
    table.add_column("Models", overflow="fold")
    table.add_column("State", no_wrap=True)
    with_speeds = any(worker.speed != 1 for worker in fleet.workers)
    for header in ("Run", "Wait", "Heard", *(["Speed"] if with_speeds else [])):
        table.add_column(header, justify="right", no_wrap=True)
    for worker in fleet.workers:
        table.add_row(*_cells(worker), *([Text(f"{worker.speed:g}")] if with_speeds else []))
    return [title, table, *(_problem(worker, words) for worker in fleet.workers for words in _problems(worker))]


def _cells(worker: WorkerStatus) -> tuple[Text, ...]:
    silent = "never" if worker.silent_s is None else duration(worker.silent_s)
    return (
        Text.assemble(worker.worker_id, "\n", (printable(worker.url), "dim")),
        Text(worker.kind),
        Text(printable(", ".join(worker.model_names)) or "-"),
        _state(worker),
        Text(str(worker.load.running)),
        Text(str(worker.load.waiting)),
        Text(silent),
    )


def _state(worker: WorkerStatus) -> Text:
    if worker.away:
        return Text("away", "red")
    if worker.overdue:
        return Text("silent", "yellow")
    if worker.draining:
        return Text("draining", "yellow")
    if not worker.ready:
        return Text("not ready", "yellow")
    if worker.circuit.open:
        return Text("failing", "red")
    return Text("on trial", "yellow") if worker.circuit.half_open else Text("ready", "green")


def _problem(worker: WorkerStatus, words: str) -> Text:
    return Text(f"{printable(worker.url)}: {printable(words)}", "yellow")


def _problems(worker: WorkerStatus) -> Iterator[str]:
    if worker.problem is not None:
        yield worker.problem
    circuit = worker.circuit
    if circuit.open:
        yield (
            f"{_count(circuit.failures, 'request')} in a row failed; "
            f"{_count(circuit.open, 'gateway process', 'es')} will prefer others until it is well."
        )
    if circuit.half_open:
        yield (
            f"It failed and answers again; {_count(circuit.half_open, 'gateway process', 'es')} will try it with one "
            "request at a time."
        )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
