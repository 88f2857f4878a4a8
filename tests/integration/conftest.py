"""Workers that several files use. Each is a real process on the simulated engine."""

from collections.abc import Iterator

import httpx
import pytest

from support.processes import THROUGH, Endpoint, endpoint
from support.raw_upstream import RawFleet, raw_fleet
from support.wire import RawConnection, head


@pytest.fixture
def http(simulated_endpoint: Endpoint) -> Iterator[httpx.Client]:
    """A client of the plain simulated endpoint, which must outlive whatever the test does to it."""
    with simulated_endpoint.http() as client:
        yield client
    with RawConnection(simulated_endpoint.url) as connection:  # a new one: the test may have spoilt the client's
        assert connection.send(head("GET", "/ready")).read_response().status == 200
    assert simulated_endpoint.alive()


@pytest.fixture(scope="session", params=THROUGH)
def paced_endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """20 ms between tokens: streams last long enough to be looked at."""
    with endpoint(request.param, "--engine", "simulated", "--sim-itl-ms", "20") as process:
        yield process


@pytest.fixture(scope="session", params=THROUGH)
def small_endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A context of 64 tokens."""
    with endpoint(request.param, "--engine", "simulated", "--context-length", "64") as process:
        yield process


@pytest.fixture(scope="session")
def raw_fleet_session() -> Iterator[RawFleet]:
    with raw_fleet() as fleet:
        yield fleet


@pytest.fixture
def fleet(raw_fleet_session: RawFleet) -> Iterator[RawFleet]:
    """A gateway before a worker made of bytes, which must outlive whatever the test does to it."""
    raw_fleet_session.upstream.forget()
    yield raw_fleet_session
    raw_fleet_session.assert_well()
