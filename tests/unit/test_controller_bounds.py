"""How many servers a controller takes."""

from collections.abc import Iterator

import pytest

from chatfleet.controller import servers as registered
from chatfleet.controller.errors import FleetFull
from chatfleet.controller.probe import probe_session
from chatfleet.controller.registry import Registry
from chatfleet.controller.servers import Servers
from chatfleet.controller.service import ControllerService
from chatfleet.core.fleet import ServerRegistration
from support.fake_openai import FakeOpenAI


@pytest.fixture
def one() -> Iterator[FakeOpenAI]:
    with FakeOpenAI("a") as server:
        yield server


@pytest.fixture
def two() -> Iterator[FakeOpenAI]:
    with FakeOpenAI("b") as server:
        yield server


async def test_the_number_of_servers_is_bounded_and_one_that_leaves_makes_room(
    one: FakeOpenAI, two: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registered, "MAX_SERVERS", 1)
    service = ControllerService(Registry(15.0), controller_id="test", heartbeat_interval_s=5.0)
    async with probe_session() as session:
        servers = Servers(service, session, None)
        await servers.register(ServerRegistration(url=one.url))
        with pytest.raises(FleetFull, match="Unregister"):
            await servers.register(ServerRegistration(url=two.url))
        assert not two.requests
        await servers.register(ServerRegistration(url=one.url))
        await servers.unregister(one.url)
        await servers.register(ServerRegistration(url=two.url))
        assert [worker.url for worker in service.registry.workers()] == [two.url]
        await servers.aclose()
    service.close()


async def test_a_server_that_does_not_fit_the_fleet_is_refused_and_not_kept(one: FakeOpenAI) -> None:
    service = ControllerService(Registry(15.0, max_workers=0), controller_id="test", heartbeat_interval_s=5.0)
    async with probe_session() as session:
        servers = Servers(service, session, None)
        with pytest.raises(FleetFull):
            await servers.register(ServerRegistration(url=one.url))
        assert list(servers) == []
        await servers.aclose()
    service.close()
