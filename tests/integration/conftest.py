"""Workers that several files use. Each is a real process on the simulated engine."""

from collections.abc import Iterator

import httpx
import pytest

from support.processes import WorkerProcess


@pytest.fixture
def http(simulated_worker: WorkerProcess) -> Iterator[httpx.Client]:
    """A client of the plain simulated worker, which must outlive whatever the test does to it."""
    with simulated_worker.http() as client:
        yield client
        assert client.get("/ready").status_code == 200
    assert simulated_worker.alive()


@pytest.fixture(scope="session")
def paced_worker() -> Iterator[WorkerProcess]:
    """20 ms between tokens: streams last long enough to be looked at."""
    with WorkerProcess("--engine", "simulated", "--sim-itl-ms", "20") as worker:
        yield worker


@pytest.fixture(scope="session")
def small_worker() -> Iterator[WorkerProcess]:
    """A context of 64 tokens."""
    with WorkerProcess("--engine", "simulated", "--context-length", "64") as worker:
        yield worker
