"""Fixtures for every test."""

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from support.processes import WorkerProcess


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call on an event loop fails the test."""
    with blockbuster_ctx() as detector:
        yield detector


@pytest.fixture(scope="session")
def simulated_worker() -> Iterator[WorkerProcess]:
    """A worker on the simulated engine: fast, deterministic, without sense."""
    with WorkerProcess("--engine", "simulated") as worker:
        yield worker


@pytest.fixture(scope="session")
def tiny_worker() -> Iterator[WorkerProcess]:
    """A worker that serves the bundled model on OpenVINO."""
    with WorkerProcess() as worker:
        yield worker
