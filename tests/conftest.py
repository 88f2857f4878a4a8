"""Fixtures for every test."""

import socket
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from support.conformance_table import conformance_lines
from support.processes import THROUGH, Endpoint, endpoint


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call on an event loop fails the test."""
    with blockbuster_ctx() as detector:
        yield detector


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for a user goes to folders of the tests, and what the user runs is not seen by them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session", params=THROUGH)
def simulated_endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """The simulated engine: fast, deterministic, without sense."""
    with endpoint(request.param, "--engine", "simulated") as process:
        yield process


@pytest.fixture(scope="session", params=THROUGH)
def tiny_endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """The bundled model on OpenVINO."""
    with endpoint(request.param) as process:
        yield process


@pytest.fixture
def free_port() -> int:
    """For a process that has to come back where it was."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What long runs counted is shown though they passed, and how every engine did in the conformance suite."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(str(value))
    outcomes = ("passed", "failed", "error", "skipped")
    for line in conformance_lines(report for outcome in outcomes for report in terminalreporter.getreports(outcome)):
        terminalreporter.write_line(line)
