"""`chatfleet drain`: a worker finishes what it has, and ends."""

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import typer
from rich.markup import escape

from chatfleet.cli.controllers import (
    ControllerUrls,
    TokenFile,
    access,
    console,
    errors_in,
    fail,
    fail_with,
    gather,
    reports_of,
    warn_of,
)
from chatfleet.cli.fleet_table import Report, printable
from chatfleet.core.errors import ChatFleetError
from chatfleet.core.fleet import EXPIRY_S, FleetStatus, WorkerStatus

_POLL_S: Final = 0.5
_SHOWN_WORKERS: Final = 20


class NotFound(ChatFleetError):
    """What was given does not name one worker. The message says what there is."""


def drain(
    worker: Annotated[str, typer.Argument(help="Its id, as much of that as no other has, or its URL.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it has left the fleet.", min=0)] = 120.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for that.")] = False,
    controller_url: ControllerUrls = None,
    fleet_token_file: TokenFile = None,
) -> None:
    """Let a worker finish what it has, and end. A registered server is unregistered instead."""
    urls, token = access(controller_url, fleet_token_file)
    reports = reports_of(urls, token)
    fleets = _fleets(reports)
    if not fleets:
        fail_with(errors_in(reports))
    try:
        found = find_worker(worker, (each for fleet in fleets.values() for each in fleet.workers))
    except NotFound as exc:
        fail(str(exc))
    if found.kind == "openai":
        _unregister(found, urls, token)
    else:
        _drain(found, urls, token)
        if not no_wait:
            _wait(found, urls, token, {url: fleet.epoch for url, fleet in fleets.items()}, timeout)


def find_worker(given: str, workers: Iterable[WorkerStatus]) -> WorkerStatus:
    """The worker that has this id or URL, or the only one whose id begins so. Raises NotFound."""
    known = {worker.worker_id: worker for worker in workers}
    if given in known:
        return known[given]
    url = given.rstrip("/").removesuffix("/v1")
    found = [worker for worker in known.values() if worker.url == url]
    found = found or [worker for worker in known.values() if given and worker.worker_id.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{given} may be any of {_names(found)}. Give the whole id of the one that is meant.")
    if not known:
        raise NotFound(f"There is no worker {given}: the fleet has none at all.")
    raise NotFound(f"There is no worker {given}. The fleet has {_names(list(known.values()))}.")


def _names(workers: Sequence[WorkerStatus]) -> str:
    shown = ", ".join(_name(worker) for worker in workers[:_SHOWN_WORKERS])
    return shown if len(workers) <= _SHOWN_WORKERS else f"{shown} and {len(workers) - _SHOWN_WORKERS} more"


def _name(worker: WorkerStatus) -> str:
    return f"{worker.worker_id} at {worker.url}"


def _unregister(server: WorkerStatus, urls: Sequence[str], token: str | None) -> None:
    answers = gather(urls, token, lambda client: client.unregister_server(server.url))
    errors = errors_in(answers)
    if len(errors) == len(answers):
        fail_with(errors)
    warn_of([error for error in errors if error.status != 404])
    _say(
        f"Unregistered {_name(server)}: it gets no new requests, and may finish those it has. It is no worker of ours, "
        "so it runs on."
    )


def _drain(worker: WorkerStatus, urls: Sequence[str], token: str | None) -> None:
    answers = gather(urls, token, lambda client: client.drain(worker.worker_id))
    errors = errors_in(answers)
    if len(errors) == len(answers):
        fail_with(errors)
    warn_of([error for error in errors if error.status != 404])
    _say(f"{_name(worker)} gets no new requests, and ends when it has finished those it has.")


def _wait(
    worker: WorkerStatus, urls: Sequence[str], token: str | None, epochs: dict[str, int], timeout_s: float
) -> None:
    """Until no controller knows the worker. Ends the command with status 1 when it takes too long.

    `epochs` are those of the controllers when it was told to end: one that has begun anew may know it again soon.
    """
    deadline = time.monotonic() + timeout_s
    with console.status("") as shown:
        while True:
            fleets = _fleets(reports_of(urls, token))
            present = [
                each for fleet in fleets.values() for each in fleet.workers if each.worker_id == worker.worker_id
            ]
            is_new = [fleet.epoch != epochs.get(url) and fleet.uptime_s < EXPIRY_S for url, fleet in fleets.items()]
            if fleets and not present and not any(is_new):
                break
            if not all(each.draining for each in present):
                gather(urls, token, lambda client: client.drain(worker.worker_id))
            work = _work(present)
            if time.monotonic() >= deadline:
                fail(
                    f"{_name(worker)} has not left within {timeout_s:g} s, with {work}. It gets no new requests. Wait "
                    "on with a longer --timeout, or end its process: a second SIGTERM breaks off what it has."
                )
            shown.update(escape(printable(f"Waiting for {_name(worker)}, with {work}")))
            time.sleep(_POLL_S)
    _say(f"{_name(worker)} has left.")


def _work(present: Sequence[WorkerStatus]) -> str:
    running = max((each.load.running for each in present), default=0)
    waiting = max((each.load.waiting for each in present), default=0)
    return f"{running} running and {waiting} waiting"


def _fleets(reports: Iterable[Report]) -> dict[str, FleetStatus]:
    return {url: report for url, report in reports if isinstance(report, FleetStatus)}


def _say(text: str) -> None:
    console.print(escape(printable(text)))
