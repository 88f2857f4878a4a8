"""Looking at a controller as workers and gateways do."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx

from support.wire import PATIENCE_S, Json

T = TypeVar("T")


def until(look: Callable[[], T], what: str) -> T:
    """What `look` gives, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


def worker_json(worker_id: str, url: str, *models: str, **fields: object) -> Json:
    """A worker as it describes itself."""
    return {"worker_id": worker_id, "url": url, "models": [{"id": model} for model in models], **fields}


def beat(controller: httpx.Client, worker: Json, **load: int) -> Json:
    """Send a heartbeat; the registration that comes back."""
    response = controller.put(f"/fleet/workers/{worker['worker_id']}", json={"worker": worker, "load": load})
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def workers(controller: httpx.Client) -> dict[str, Json]:
    """The workers that gateways are told of, by their ids."""
    return {worker["worker_id"]: worker for worker in controller.get("/fleet/snapshot").json()["workers"]}


def statuses(controller: httpx.Client) -> dict[str, Json]:
    """All that `chatfleet status` shows of workers, by their ids."""
    return {worker["worker_id"]: worker for worker in controller.get("/fleet/status").json()["workers"]}


class Watch:
    """An open watch. `seen` are all events so far."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.seen: list[Json] = []

    def next(self) -> Json:
        """The next event, signs of life included."""
        line = next(self._lines)
        assert line.startswith("data: "), line
        assert next(self._lines) == ""
        event: Json = json.loads(line.removeprefix("data: "))
        self.seen.append(event)
        return event

    def next_change(self) -> Json:
        while (event := self.next())["type"] == "alive":
            pass
        return event

    def ended(self) -> bool:
        """Whether the controller ends it, after whatever is still to come."""
        for _ in self._lines:
            pass
        return True


@contextmanager
def watching(controller: httpx.Client) -> Iterator[Watch]:
    with controller.stream("GET", "/fleet/watch", timeout=PATIENCE_S) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        yield Watch(response.iter_lines())
