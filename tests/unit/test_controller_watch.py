"""Watches and expiry on an event loop, without sockets."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from chatfleet.controller import watch as watching
from chatfleet.controller.errors import FleetFull
from chatfleet.controller.registry import Registry
from chatfleet.controller.service import ControllerService
from chatfleet.core.errors import ShuttingDown
from chatfleet.core.fleet import Heartbeat, WorkerInfo, WorkerLoad
from support.wire import PATIENCE_S, Json


def make_service(expiry_s: float = 15.0) -> ControllerService:
    return ControllerService(Registry(expiry_s), controller_id="test", heartbeat_interval_s=expiry_s / 3)


def beat(worker_id: str, *, ready: bool = True, running: int = 0, waiting: int = 0) -> Heartbeat:
    worker = WorkerInfo(worker_id=worker_id, url=f"http://{worker_id}:1", models=(), ready=ready)
    return Heartbeat(worker=worker, load=WorkerLoad(running=running, waiting=waiting))


async def read(watch: AsyncGenerator[bytes, None]) -> list[Json]:
    """What comes next, which may be several events."""
    async with asyncio.timeout(PATIENCE_S):
        data = (await anext(watch)).decode()
    assert data.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in data.split("\n\n")[:-1]]


async def test_a_watch_begins_with_all_and_goes_on_with_every_change() -> None:
    service = make_service()
    service.hear(beat("a"))
    async with aclosing(service.watch()) as watch:
        (first,) = await read(watch)
        assert (first["type"], first["version"], first["epoch"]) == ("snapshot", 1, service.epoch)
        assert [worker["worker_id"] for worker in first["workers"]] == ["a"]
        service.hear(beat("b"))
        service.hear(beat("a"))
        service.deregister("a")
        events = await read(watch)
        assert [(event["type"], event["version"]) for event in events] == [("changed", 2), ("gone", 3)]
    service.close()


async def test_silence_is_broken_by_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "ALIVE_INTERVAL_S", 0.01)
    service = make_service()
    async with aclosing(service.watch()) as watch:
        await read(watch)
        assert await read(watch) == [{"type": "alive", "version": 0, "loads": {}}]


async def test_signs_of_life_tell_the_loads_of_the_last_heartbeats_and_changes_do_not_put_them_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "ALIVE_INTERVAL_S", 0.1)
    service = make_service()
    service.hear(beat("a", running=3))
    async with aclosing(service.watch()) as watch:
        (first,) = await read(watch)
        assert first["loads"] == {"a": {"running": 3, "waiting": 0}}
        events: list[Json] = []
        while not events or events[-1]["type"] != "alive":
            service.hear(beat("a", running=4, waiting=2))
            service.hear(beat("b", ready=bool(len(events) % 2)))
            events += await read(watch)
            assert len(events) < 10_000
        assert events[-1]["loads"] == {"a": {"running": 4, "waiting": 2}, "b": {"running": 0, "waiting": 0}}
        assert events[-1]["version"] == events[-2]["version"], "it comes after the changes that it counts"
    service.close()


async def test_watchers_get_the_same_sign_of_life_and_never_one_from_before_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "ALIVE_INTERVAL_S", 0.05)
    service = make_service()
    service.hear(beat("a"))
    async with aclosing(service.watch()) as one, aclosing(service.watch()) as other:
        versions = {id(one): 0, id(other): 0}
        for count in range(20):
            for watch in (one, other):
                for event in await read(watch):
                    expected = versions[id(watch)] + (event["type"] == "changed")
                    assert event["type"] == "snapshot" or event["version"] == expected
                    versions[id(watch)] = event["version"]
            if count % 3 == 0:
                service.hear(beat("a", ready=bool(count % 2)))
    service.close()


async def test_one_who_does_not_read_is_dropped_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "MAX_WAITING_BYTES", 500)  # three of the events below
    service = make_service()
    async with aclosing(service.watch()) as slow, aclosing(service.watch()) as quick:
        await read(slow)
        await read(quick)
        for count in range(4):
            service.hear(beat("a", ready=bool(count % 2)))
            assert [event["version"] for event in await read(quick)] == [count + 1]
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        assert "does not read" in caplog.text
        service.hear(beat("b"))
        assert [event["version"] for event in await read(quick)] == [5]
    service.close()


async def test_one_event_is_never_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_WAITING_BYTES", 1)
    service = make_service()
    async with aclosing(service.watch()) as watch:
        await read(watch)
        service.hear(beat("a"))
        assert [event["version"] for event in await read(watch)] == [1]
    service.close()


async def test_the_number_of_watches_is_bounded_and_a_closed_one_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_WATCHERS", 1)
    service = make_service()
    async with aclosing(service.watch()) as first:
        await read(first)
        with pytest.raises(FleetFull):
            await anext(service.watch())
    async with aclosing(service.watch()) as second:
        await read(second)


async def test_closing_ends_every_watch_and_takes_no_new_one() -> None:
    service = make_service()
    async with aclosing(service.watch()) as watch:
        await read(watch)
        service.hear(beat("a"))
        service.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    with pytest.raises(ShuttingDown):
        await anext(service.watch())


async def test_silent_workers_are_gone_one_by_one_at_their_deadlines() -> None:
    service = make_service(expiry_s=0.2)
    async with aclosing(service.watch()) as watch:
        await read(watch)
        service.hear(beat("a"))
        began = service.now()
        await read(watch)
        await asyncio.sleep(0.1)
        service.hear(beat("b"))
        await read(watch)
        (gone,) = await read(watch)
        assert (gone["type"], gone["worker_id"], gone["reason"]) == ("gone", "a", "expired")
        assert service.now() - began >= 0.2
        (gone,) = await read(watch)
        assert gone["worker_id"] == "b" and service.now() - began >= 0.3
    service.close()


async def test_a_heartbeat_in_time_keeps_a_worker() -> None:
    service = make_service(expiry_s=0.5)
    service.hear(beat("quiet"))
    async with aclosing(service.watch()) as watch:
        await read(watch)
        while "quiet" in service.registry:
            service.hear(beat("loud"))
            await asyncio.sleep(0.02)
        assert "loud" in service.registry
    service.close()


async def test_no_worker_is_blamed_when_the_controller_stood_still(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    service = make_service(expiry_s=1.0)
    service.hear(beat("a"))
    loop = asyncio.get_running_loop()
    stopped_until = loop.time() + 3.0
    loop.call_soon(_stand_still, loop, stopped_until)
    await asyncio.sleep(0.01)
    assert loop.time() >= stopped_until and "a" in service.registry
    assert "stood still" in caplog.text
    async with aclosing(service.watch()) as watch:
        await read(watch)
        (gone,) = await read(watch)
        assert (gone["worker_id"], gone["reason"]) == ("a", "expired")
    service.close()


def _stand_still(loop: asyncio.AbstractEventLoop, until_s: float) -> None:
    while loop.time() < until_s:
        pass
