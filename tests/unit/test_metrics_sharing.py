"""Several gateway processes, one answer: files of the living, the dead, and of nobody."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from chatfleet.observability.circuits import MAX_CIRCUITS, CircuitNumbers, merged
from chatfleet.observability.exposition import metrics_response
from chatfleet.observability.gateway import GatewayMetrics
from chatfleet.observability.sharing import FILE_VARIABLE, SharedFile, file_environment, is_alive, shared_file
from support.fleet import until
from support.metrics import Scraped, parsed

CHAT = "/v1/chat/completions"
OK = {"model_name": "m", "endpoint": CHAT, "status": "200"}


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.fixture
def living_pid() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")


def gateway(path: Path | None, connections: int = 0, circuits: Sequence[CircuitNumbers] = ()) -> GatewayMetrics:
    return GatewayMetrics(
        [CHAT],
        upstream_connections=lambda: connections,
        workers=lambda: {"m": 2},
        circuits=lambda: circuits,
        file=None if path is None else SharedFile(path),
    )


@contextlib.asynccontextmanager
async def running(
    path: Path | None, connections: int = 0, circuits: Sequence[CircuitNumbers] = ()
) -> AsyncIterator[GatewayMetrics]:
    metrics = gateway(path, connections, circuits)
    async with metrics.sharing():
        yield metrics


async def told(metrics: GatewayMetrics) -> Scraped:
    return parsed((await metrics_response(metrics))[0].decode())


async def end_with(path: Path, requests: int, pid: int, connections: int = 0) -> None:
    """A process that has counted so many requests, one of them in flight still, and is then to be found under `pid`."""
    async with running(path, connections) as metrics:
        for _ in range(requests):
            metrics.of("m", CHAT).ended(200, 0.1)
        metrics.of("m", CHAT).in_flight += 1
    await asyncio.to_thread(rewrite, path, b'"pid":%d,' % os.getpid(), b'"pid":%d,' % pid)


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    written = path.read_bytes()
    assert old in written
    path.write_bytes(written.replace(old, new))


async def test_one_process_tells_its_own() -> None:
    async with running(None, connections=3) as metrics:
        metrics.of("m", CHAT).ended(200, 0.1)
        scraped = await told(metrics)
    assert scraped.value("chatfleet:requests_total", **OK) == 1
    assert scraped.value("chatfleet:upstream_connections") == 3
    assert scraped.value("chatfleet:workers", model_name="m") == 2
    assert scraped.value("process_cpu_seconds_total") > 0


async def test_whoever_is_asked_tells_the_sum(tmp_path: Path) -> None:
    async with running(tmp_path / "a.metrics", 3) as one, running(tmp_path / "b.metrics", 4) as two:
        for count, metrics in ((2, one), (5, two)):
            for _ in range(count):
                metrics.of("m", CHAT).ended(200, 0.1)
            metrics.of("m", CHAT).in_flight += 1
        sums = []
        for metrics in (one, two):
            await told(one)  # what the other tells is as old as its file
            await told(two)
            scraped = await told(metrics)
            sums.append(scraped.value("chatfleet:requests_total", **OK))
            assert scraped.value("chatfleet:requests_in_flight", model_name="m", endpoint=CHAT) == 2
            assert scraped.value("chatfleet:upstream_connections") == 7
            assert scraped.value("chatfleet:workers", model_name="m") == 2, "each sees the same workers"
    assert sums == [7, 7]


async def test_sums_never_go_back_whoever_is_asked(tmp_path: Path) -> None:
    async with running(tmp_path / "a.metrics") as one, running(tmp_path / "b.metrics") as two:
        last = 0.0
        for turn in range(40):
            for metrics in (one, two):
                for _ in range(1 + turn % 3):
                    metrics.of("m", CHAT).ended(200, 0.1)
            scraped = await told(one if turn % 2 else two)
            seen = scraped.value("chatfleet:requests_total", **OK)
            assert seen > last
            last = seen


async def test_numbers_are_shared_without_anybody_asking(tmp_path: Path) -> None:
    async with running(tmp_path / "a.metrics") as one, running(tmp_path / "b.metrics") as two:
        one.of("m", CHAT).ended(200, 0.1)
        shared = SharedFile(tmp_path / "a.metrics")

        def is_shared() -> bool:
            numbers = shared.read()
            return numbers is not None and any(request.by_status == {200: 1} for request in numbers.requests)

        await asyncio.to_thread(until, is_shared, "the numbers in its file")
        assert (await told(two)).value("chatfleet:requests_total", **OK) == 1


async def test_the_dead_count_but_have_nothing_in_flight(tmp_path: Path, dead_pid: int) -> None:
    await end_with(tmp_path / "b.metrics", 5, dead_pid, connections=9)
    async with running(tmp_path / "a.metrics", 1) as metrics:
        scraped = await told(metrics)
    assert scraped.value("chatfleet:requests_total", **OK) == 5
    assert scraped.value("chatfleet:requests_in_flight", model_name="m", endpoint=CHAT) == 0
    assert scraped.value("chatfleet:upstream_connections") == 1
    assert scraped.label_values("process") == {"a"}


async def test_the_living_have_their_process_figures_told(tmp_path: Path, living_pid: int) -> None:
    await end_with(tmp_path / "b.metrics", 5, living_pid)
    async with running(tmp_path / "a.metrics") as metrics:
        scraped = await told(metrics)
    assert scraped.value("chatfleet:requests_in_flight", model_name="m", endpoint=CHAT) == 1
    assert scraped.label_values("process") == {"a", "b"}
    assert scraped.value("process_resident_memory_bytes", process="b") > 0


async def test_a_successor_goes_on_from_where_the_dead_one_was(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "a.metrics"
    for life in range(3):
        async with running(path) as metrics:
            assert (await told(metrics)).total("chatfleet:requests_total") == 4 * life
            assert (await told(metrics)).total("chatfleet:requests_in_flight") == 0
        await end_with(path, 4, dead_pid)
    async with running(tmp_path / "b.metrics") as other:
        assert (await told(other)).value("chatfleet:requests_total", **OK) == 12


W = {"model_name": "m", "worker": "http://w:1"}


def circuit(*, state: int | None = None, opened: int) -> CircuitNumbers:
    return CircuitNumbers("m", "http://w:1", state, opened)


async def test_of_circuits_the_worst_state_of_the_living_and_the_sum_of_openings_are_told(
    tmp_path: Path, dead_pid: int
) -> None:
    dead = tmp_path / "c.metrics"
    async with running(dead, circuits=[circuit(state=2, opened=4)]):
        pass
    await asyncio.to_thread(rewrite, dead, b'"pid":%d,' % os.getpid(), b'"pid":%d,' % dead_pid)
    here, there = [circuit(state=0, opened=1)], [circuit(state=1, opened=2)]
    async with running(tmp_path / "a.metrics", circuits=here) as one, running(tmp_path / "b.metrics", circuits=there):
        await asyncio.to_thread(until, (tmp_path / "b.metrics").exists, "the other's numbers")
        scraped = await told(one)
    assert scraped.value("chatfleet:worker_circuit_state", **W) == 1
    assert scraped.value("chatfleet:worker_circuit_opened_total", **W) == 7
    async with running(dead, circuits=here) as successor:
        scraped = await told(successor)
    assert scraped.value("chatfleet:worker_circuit_opened_total", **W) == 8


async def test_of_a_worker_that_is_gone_no_state_is_told() -> None:
    async with running(None, circuits=[circuit(opened=3)]) as metrics:
        scraped = await told(metrics)
    assert scraped.value("chatfleet:worker_circuit_opened_total", **W) == 3
    assert not scraped.families["chatfleet:worker_circuit_state"].samples


def test_the_circuits_that_are_told_apart_are_bounded() -> None:
    many = [CircuitNumbers("m", f"http://w{number}:1", state=0, opened=1) for number in range(3 * MAX_CIRCUITS)]
    sums = merged([(many[: 2 * MAX_CIRCUITS], True), (many[MAX_CIRCUITS:], False)])
    assert len(sums) == MAX_CIRCUITS + 1
    assert sum(one.opened for one in sums) == 4 * MAX_CIRCUITS


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\0\xff\xfe",
        b"[]",
        b"{}",
        b'{"pid":1}',
        b'{"pid":"x","requests":[]}',
        b'{"pid":-1,"requests":[]}',
        b'{"pid":0,"requests":[]}',
        b'{"pid":' + b"9" * 400 + b',"requests":[]}',
        b'{"pid":1,"requests":[{"model_name":"m"}]}',
        b'{"pid":1,"requests":[],"circuits":[{"worker":"w"}]}',
    ],
)
async def test_rubbish_beside_it_is_passed_over(tmp_path: Path, rubbish: bytes) -> None:
    await asyncio.to_thread((tmp_path / "b.metrics").write_bytes, rubbish)
    await asyncio.to_thread((tmp_path / "c.metrics").mkdir)
    async with running(tmp_path / "a.metrics") as metrics:
        metrics.of("m", CHAT).ended(200, 0.1)
        assert (await told(metrics)).value("chatfleet:requests_total", **OK) == 1


async def test_a_torn_file_is_passed_over_wherever_it_is_torn(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "b.metrics"
    await end_with(path, 5, dead_pid)
    whole = await asyncio.to_thread(path.read_bytes)
    async with running(tmp_path / "a.metrics") as metrics:
        for size in range(0, len(whole), 37):
            await asyncio.to_thread(path.write_bytes, whole[:size])
            assert (await told(metrics)).total("chatfleet:requests_total") == 0
        await asyncio.to_thread(path.write_bytes, whole)
        assert (await told(metrics)).total("chatfleet:requests_total") == 5


async def test_numbers_of_another_version_are_passed_over(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "b.metrics"
    await end_with(path, 5, dead_pid)
    await asyncio.to_thread(rewrite, path, b'"edges":[0.001,', b'"edges":[0.002,')
    async with running(tmp_path / "a.metrics") as metrics:
        assert (await told(metrics)).total("chatfleet:requests_total") == 0


async def test_a_torn_file_of_its_own_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.metrics"
    await asyncio.to_thread(path.write_bytes, b'{"pid":')
    async with running(path) as metrics:
        metrics.of("m", CHAT).ended(200, 0.1)
    async with running(path) as metrics:
        assert (await told(metrics)).total("chatfleet:requests_total") == 1


async def test_without_its_folder_it_tells_its_own_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "gone" / "a.metrics") as metrics:
        for _ in range(3):
            metrics.of("m", CHAT).ended(200, 0.1)
            scraped = await told(metrics)
    assert scraped.total("chatfleet:requests_total") == 3
    assert caplog.text.count("/metrics of other processes") == 1


def test_a_process_finds_the_file_that_its_parent_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert shared_file() is None
    for name, value in file_environment(tmp_path, "gateway#2").items():
        monkeypatch.setenv(name, value)
    found = shared_file()
    assert found is not None and found.name == "gateway#2"


def test_who_is_alive(dead_pid: int, living_pid: int) -> None:
    assert is_alive(os.getpid()) and is_alive(living_pid)
    assert is_alive(1), "another user's"
    assert not is_alive(dead_pid)
    assert not is_alive(2**62)
