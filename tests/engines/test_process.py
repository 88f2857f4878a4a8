"""`ProcessEngine` with real child processes."""

import asyncio
import gc
import math
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
import uvloop

from chatfleet.core.errors import (
    ConfigurationError,
    EngineCrashed,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    UnsupportedParameter,
)
from chatfleet.core.subprocesses import restart_delay_s
from chatfleet.engines import wire
from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams, TokenDelta, TokenStream
from chatfleet.engines.link import Link
from chatfleet.engines.process import ProcessEngine
from chatfleet.engines.simulated import SimulatedBackend
from engines.process_backends import BROKEN_ADD, EXITS, HOLDS_THE_GIL, REFUSED, SLOW_STEP, THROWS

TESTS = Path(__file__).parents[1]
PATIENCE_S = 30.0
"""How long a test waits for what should come in milliseconds: this runs on busy machines."""

STALL_S = 1.5
"""Long enough that a healthy child answers in time on such a machine."""

FAULTY = "engines.process_backends:FaultyBackend"
PROMPT = list(b"Tell me of the sea.")
EOS = (257,)


@pytest.fixture(autouse=True)
def children_find_the_test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("PYTHONWARNINGS", "error")


def make_engine(
    backend: str | None = FAULTY, *, config: dict[str, Any] | None = None, **settings: Any
) -> ProcessEngine:
    settings = {"restart_backoff_s": 0.05, "restart_backoff_max_s": 0.2, "load_timeout_s": 60.0, **settings}
    return ProcessEngine(EngineConfig(engine="simulated", **(config or {})), backend=backend, **settings)


class Launch(Protocol):
    async def __call__(
        self, backend: str | None = FAULTY, *, config: dict[str, Any] | None = None, **settings: Any
    ) -> ProcessEngine: ...


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    engines: list[ProcessEngine] = []

    async def start(
        backend: str | None = FAULTY, *, config: dict[str, Any] | None = None, **settings: Any
    ) -> ProcessEngine:
        engine = make_engine(backend, config=config, **settings)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.aclose()
        assert engine.pid is None
    assert await engine_children() == []


async def engine_children() -> list[int]:
    """Engine processes that are this process's own children, also those that have ended and were not reaped."""

    def look() -> list[int]:
        children = psutil.Process().children()
        return [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE or is_engine(child)]

    return await asyncio.to_thread(look)


def is_gone(process: psutil.Process) -> bool:
    """Ended; whether its new parent has reaped it yet is not our business."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_engine(process: psutil.Process) -> bool:
    return "chatfleet.engines.child" in process.cmdline()


async def exists(pid: int) -> bool:
    return await asyncio.to_thread(psutil.pid_exists, pid)


def block(seconds: float) -> None:
    """Keep the event loop from running, in a way that the tests' detector of blocking calls lets pass."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def sampling(max_tokens: int = 20, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **settings)


async def read(stream: TokenStream) -> list[TokenDelta]:
    return [delta async for delta in stream]


async def tokens_of(stream: TokenStream) -> list[int]:
    return [token_id for delta in await read(stream) for token_id in delta.token_ids]


def expected_tokens(prompt: list[int], params: SamplingParams) -> list[int]:
    backend = SimulatedBackend(EngineConfig(engine="simulated"))
    backend.add(GenerateRequest(request_id=1, prompt_token_ids=prompt, sampling=params))
    token_ids: list[int] = []
    while backend.next_step_s() is not None:
        for delta in backend.step():
            token_ids += delta.token_ids
    return token_ids


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is about other processes
            await asyncio.sleep(0.005)


async def ready_again(engine: ProcessEngine) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await engine.wait_ready()


def pid_of(engine: ProcessEngine) -> int:
    assert engine.pid is not None
    return engine.pid


def requests_in(engine: ProcessEngine) -> int:
    link = engine._link
    return 0 if link is None else len(link.inboxes) + len(link.embeds)


# --- serving ---


async def test_streams_what_the_backend_makes(launch: Launch) -> None:
    engine = await launch(None)
    assert engine.ready and engine.unavailable_reason is None
    assert engine.capabilities.engine == "simulated"
    params = sampling(500, stop_token_ids=EOS)
    deltas = await read(engine.generate(PROMPT, params))
    assert [token for delta in deltas for token in delta.token_ids] == expected_tokens(PROMPT, params)
    assert [delta.finish_reason for delta in deltas][-1] == "stop"
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    assert deltas[0].cached_tokens == 0


async def test_stats_come_with_the_reports(launch: Launch) -> None:
    engine = await launch(None)
    await read(engine.generate(PROMPT, sampling(7)))
    stats = engine.stats()
    assert (stats.generated_tokens, stats.steps, stats.running, stats.waiting) == (7, 7, 0, 0)


async def test_a_thousand_streams_at_once(launch: Launch) -> None:
    engine = await launch(None, config={"max_concurrency": 1000})
    params = sampling(20)
    prompts = [list(b"prompt %d" % index) for index in range(1000)]
    answers = await asyncio.gather(*[tokens_of(engine.generate(prompt, params)) for prompt in prompts])
    for index in range(0, 1000, 97):
        assert answers[index] == expected_tokens(prompts[index], params)
    assert {len(answer) for answer in answers} == {20}
    assert requests_in(engine) == 0


async def test_a_slow_reader_gets_one_merged_delta(launch: Launch) -> None:
    engine = await launch(None)
    params = sampling(300, logprobs=2)
    stream = engine.generate(PROMPT, params)
    await eventually(lambda: engine.stats().generated_tokens == 300)
    [delta] = await read(stream)
    assert delta.token_ids == expected_tokens(PROMPT, params)
    assert delta.logprobs is not None and [entry.token_id for entry in delta.logprobs] == delta.token_ids
    assert delta.cached_tokens == 0 and delta.finish_reason == "length"


async def test_a_reader_that_is_cancelled_loses_nothing(launch: Launch) -> None:
    engine = await launch(None, config={"sim_itl_ms": 10.0})
    params = sampling(40)
    stream = engine.generate(PROMPT, params)
    token_ids: list[int] = []
    while True:
        try:
            async with asyncio.timeout(0.003):
                token_ids += (await anext(stream)).token_ids
        except TimeoutError:
            continue
        except StopAsyncIteration:
            break
    assert token_ids == expected_tokens(PROMPT, params)


async def test_a_stream_has_one_reader(launch: Launch) -> None:
    engine = await launch(None, config={"sim_ttft_ms": 60_000.0})
    stream = engine.generate(PROMPT, sampling())
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await anext(stream)
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await first


async def test_a_worker_that_is_blocked_does_not_deadlock_with_its_engine(launch: Launch) -> None:
    """The engine fills the socket both ways and waits; nothing is lost when the worker goes on."""
    engine = await launch(None, config={"max_concurrency": 64})
    params = sampling(1000, logprobs=20)
    streams = [engine.generate([65, index], params) for index in range(16)]
    await eventually(lambda: engine.stats().generated_tokens > 0)
    block(1.0)
    more = [engine.generate([66] * 4000, sampling(20)) for _ in range(200)]
    answers = await asyncio.gather(*map(tokens_of, [*streams, *more]))
    assert [len(answer) for answer in answers] == [1000] * 16 + [20] * 200


# --- commands ---


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[list[wire.Command]] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        for body in wire.FrameDecoder().feed(bytes(data)):
            commands = wire.decode_to_engine(body)
            assert isinstance(commands, wire.Commands)
            self.frames.append([wire.decode_command(raw) for raw in commands.commands])


async def test_commands_of_one_tick_leave_as_one_frame() -> None:
    transport = FakeTransport()
    link = Link(asyncio.get_running_loop(), lambda link: None)
    link.connection_made(transport)
    for request_id in range(3):
        link.send(wire.Cancel(request_id))
    assert transport.frames == []
    await asyncio.sleep(0)
    link.send(wire.Ping())
    await asyncio.sleep(0)
    assert transport.frames == [[wire.Cancel(0), wire.Cancel(1), wire.Cancel(2)], [wire.Ping()]]


async def test_closing_a_stream_cancels_once_and_frees_the_slot(launch: Launch) -> None:
    engine = await launch(None, config={"max_concurrency": 1, "sim_itl_ms": 5.0})
    first = engine.generate(PROMPT, sampling(4000))
    second = engine.generate(PROMPT, sampling(3))
    assert (await anext(first)).token_ids
    assert engine.stats().waiting == 1
    await first.aclose()
    await first.aclose()
    assert len(await tokens_of(second)) == 3
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    await eventually(lambda: (engine.stats().running, engine.stats().kv_cache_usage) == (0, 0.0))


async def test_a_thousand_cancelled_streams_leave_nothing(launch: Launch) -> None:
    engine = await launch(None, config={"max_concurrency": 100, "sim_itl_ms": 50.0})
    streams = [engine.generate(PROMPT, sampling(4000)) for _ in range(1000)]
    await eventually(lambda: engine.stats().waiting == 900)
    for stream in streams:
        await stream.aclose()
    assert requests_in(engine) == 0
    await eventually(lambda: (engine.stats().running, engine.stats().waiting) == (0, 0))
    assert len(await tokens_of(engine.generate(PROMPT, sampling(3)))) == 3


async def test_a_dropped_stream_is_cancelled(launch: Launch) -> None:
    engine = await launch(None, config={"sim_itl_ms": 50.0})
    stream = engine.generate(PROMPT, sampling(4000))
    await anext(stream)
    del stream
    gc.collect()
    await eventually(lambda: requests_in(engine) == 0 and engine.stats().running == 0)


# --- requests that fail alone ---


async def test_a_refused_request_fails_alone(launch: Launch) -> None:
    engine = await launch()
    neighbour = engine.generate(PROMPT, sampling())
    with pytest.raises(UnsupportedParameter, match="No such thing") as caught:
        await read(engine.generate([REFUSED], sampling()))
    assert caught.value.param == "logit_bias"
    assert await tokens_of(neighbour) == expected_tokens(PROMPT, sampling())
    with pytest.raises(InvalidRequest, match="exceeds the context"):
        await read(engine.generate(PROMPT, sampling(100_000)))


async def test_a_request_whose_adding_fails_fails_alone_and_tells_no_internals(launch: Launch) -> None:
    engine = await launch()
    neighbour = engine.generate(PROMPT, sampling())
    with pytest.raises(EngineError, match=r"The engine failed \(ValueError\)") as caught:
        await read(engine.generate([BROKEN_ADD], sampling()))
    assert "secret" not in str(caught.value)
    assert len(await tokens_of(neighbour)) == 20


async def test_a_request_of_the_wrong_types_fails_alone(launch: Launch) -> None:
    engine = await launch()
    pid = pid_of(engine)
    neighbour = engine.generate(PROMPT, sampling())
    with pytest.raises(EngineError, match="malformed"):
        await read(engine.generate([1.5], sampling()))  # type: ignore[list-item]
    with pytest.raises(EngineError, match="malformed"):
        await engine.embed([[1.5]])  # type: ignore[list-item]
    assert len(await tokens_of(neighbour)) == 20
    assert engine.pid == pid


async def test_a_request_that_no_message_can_hold_is_refused_at_once(launch: Launch) -> None:
    engine = await launch()
    with pytest.raises(InvalidRequest):
        engine.generate(PROMPT, sampling(seed=2**70))
    assert requests_in(engine) == 0


# --- a step that fails ---


async def test_a_step_that_throws_fails_its_requests_and_the_engine_lives(launch: Launch) -> None:
    engine = await launch(config={"sim_itl_ms": 20.0, "max_concurrency": 2})
    pid = pid_of(engine)
    neighbour = engine.generate(PROMPT, sampling(1000))
    received = (await anext(neighbour)).token_ids
    culprit = engine.generate([THROWS], sampling())
    waiting = engine.generate(PROMPT, sampling())
    for stream in (culprit, waiting):
        with pytest.raises(EngineError, match=r"The engine failed \(RuntimeError\)"):
            await read(stream)
    with pytest.raises(EngineError, match=r"The engine failed \(RuntimeError\)"):
        async for delta in neighbour:
            received += delta.token_ids
    assert received == expected_tokens(PROMPT, sampling(1000))[: len(received)]
    await ready_again(engine)
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5
    assert engine.stats().running == 0
    assert engine.pid == pid and engine.restarts == 0


async def test_not_ready_while_the_backend_recovers(launch: Launch) -> None:
    changes: list[bool] = []
    engine = await launch(
        "engines.process_backends:SlowRecoveryBackend", on_ready_change=changes.append, stall_timeout_s=STALL_S
    )
    with pytest.raises(EngineError):
        await read(engine.generate([THROWS], sampling()))
    await eventually(lambda: not engine.ready)
    with pytest.raises(EngineUnavailable, match="recovering"):
        engine.generate(PROMPT, sampling())
    await ready_again(engine)
    assert changes == [True, False, True] and engine.restarts == 0


async def test_a_backend_that_cannot_recover_is_restarted(launch: Launch) -> None:
    engine = await launch("engines.process_backends:BrokenForGoodBackend")
    pid = pid_of(engine)
    with pytest.raises(EngineError, match="RuntimeError"):
        await read(engine.generate([THROWS], sampling()))
    await eventually(lambda: engine.pid not in (pid, None))
    await ready_again(engine)
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5


# --- a child that dies or is stuck ---


async def test_a_killed_child_fails_its_requests_and_is_restarted(launch: Launch) -> None:
    changes: list[bool] = []
    engine = await launch(config={"sim_itl_ms": 10.0}, on_ready_change=changes.append)
    pid = pid_of(engine)
    streams = [engine.generate(PROMPT, sampling(4000)) for _ in range(5)]
    for stream in streams:
        await anext(stream)
    embedding = asyncio.ensure_future(engine.embed([PROMPT] * 5000))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    message = r"The engine process died \(signal 9\) while this request was running; it is being restarted"
    for stream in streams:
        with pytest.raises(EngineCrashed, match=message):
            await read(stream)
    with pytest.raises(EngineCrashed, match=message):
        await embedding
    assert not engine.ready
    with pytest.raises(EngineUnavailable, match=r"died|loading") as caught:
        engine.generate(PROMPT, sampling())
    assert int(caught.value.headers["retry-after"]) >= 1
    await ready_again(engine)
    assert engine.pid != pid and engine.restarts == 1
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5
    assert changes == [True, False, True]


async def test_tokens_that_came_before_the_death_are_read_before_the_error(launch: Launch) -> None:
    engine = await launch(config={"sim_itl_ms": 20.0})
    stream = engine.generate(PROMPT, sampling(4000))
    await eventually(lambda: engine.stats().generated_tokens >= 3)
    os.kill(pid_of(engine), signal.SIGKILL)
    await eventually(lambda: not engine.ready)
    delta = await anext(stream)
    assert delta.token_ids == expected_tokens(PROMPT, sampling(4000))[: len(delta.token_ids)]
    assert len(delta.token_ids) >= 3
    with pytest.raises(EngineCrashed):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_child_that_exits_says_so(launch: Launch) -> None:
    engine = await launch()
    with pytest.raises(EngineCrashed, match=r"died \(exit status 9\)"):
        await read(engine.generate([EXITS], sampling()))
    await ready_again(engine)


@pytest.mark.parametrize("busy", [True, False], ids=["with a request", "idle"])
@pytest.mark.long
async def test_a_stopped_child_is_killed_and_restarted(launch: Launch, busy: bool) -> None:
    engine = await launch(config={"sim_itl_ms": 10.0}, stall_timeout_s=STALL_S)
    pid = pid_of(engine)
    stream = engine.generate(PROMPT, sampling(4000)) if busy else None
    if stream is not None:
        await anext(stream)
    os.kill(pid, signal.SIGSTOP)
    if stream is not None:
        with pytest.raises(
            EngineCrashed, match=rf"gave no sign of life for {STALL_S} s and was killed while this request"
        ):
            async with asyncio.timeout(PATIENCE_S):
                await read(stream)
    await eventually(lambda: engine.pid not in (pid, None))
    await ready_again(engine)
    assert not await exists(pid)
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5


async def test_a_child_that_holds_the_gil_for_ever_is_killed(launch: Launch) -> None:
    engine = await launch(stall_timeout_s=STALL_S)
    with pytest.raises(EngineCrashed, match="no sign of life"):
        async with asyncio.timeout(PATIENCE_S):
            await read(engine.generate([HOLDS_THE_GIL], sampling()))
    with pytest.raises(EngineUnavailable):
        engine.generate(PROMPT, sampling())
    await ready_again(engine)


@pytest.mark.long
async def test_a_long_step_and_long_idleness_are_not_a_stall(launch: Launch) -> None:
    engine = await launch(config={"sim_ttft_ms": 3000.0}, stall_timeout_s=2.0)
    pid = pid_of(engine)
    assert len(await tokens_of(engine.generate([SLOW_STEP], sampling(5)))) == 5
    assert engine.pid == pid and engine.restarts == 0


@pytest.mark.long
async def test_a_worker_that_was_blocked_does_not_blame_its_child(launch: Launch) -> None:
    engine = await launch(stall_timeout_s=STALL_S)
    pid = pid_of(engine)
    for _ in range(2):
        block(1.5 * STALL_S)
        await asyncio.sleep(0)
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5
    assert engine.pid == pid and engine.restarts == 0


async def test_a_child_that_dies_while_loading_again_is_tried_again(launch: Launch, tmp_path: Path) -> None:
    loads = tmp_path / "loads"
    engine = await launch("engines.process_backends:loads_once", config={"model_path": str(loads)})
    os.kill(pid_of(engine), signal.SIGKILL)
    await eventually(lambda: not engine.ready)
    await ready_again(engine)
    assert await asyncio.to_thread(loads.read_text) == "xxxx" and engine.restarts == 3
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5


async def test_a_child_that_cannot_be_started_is_tried_again(launch: Launch) -> None:
    engine = await launch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no new descriptor
    try:
        os.kill(pid_of(engine), signal.SIGKILL)
        await eventually(lambda: engine.restarts >= 2)
        assert not engine.ready
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await ready_again(engine)
    assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5


async def test_restarts_and_closing_leave_no_descriptor_open(launch: Launch) -> None:
    def descriptors() -> int:
        return psutil.Process().num_fds()

    before = await asyncio.to_thread(descriptors)
    engine = await launch()
    for _ in range(5):
        os.kill(pid_of(engine), signal.SIGKILL)
        await eventually(lambda: not engine.ready)
        await ready_again(engine)
    await engine.aclose()
    assert await asyncio.to_thread(descriptors) == before


def test_the_wait_before_a_restart_doubles_up_to_its_bound() -> None:
    delays = [restart_delay_s(failures, 0.5, 30.0) for failures in (0, 1, 2, 5, 6, 7, 10_000)]
    assert delays == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0, 30.0]


async def test_signals_to_the_process_group_leave_the_child_alone(launch: Launch) -> None:
    engine = await launch(config={"sim_itl_ms": 10.0})
    pid = pid_of(engine)
    stream = engine.generate(PROMPT, sampling(20))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert len(await tokens_of(stream)) == 20
    assert engine.pid == pid


async def test_a_ctrl_c_while_the_child_is_starting_leaves_it_alone() -> None:
    engine = make_engine(None)
    starting = asyncio.ensure_future(engine.start())
    await eventually(lambda: engine.pid is not None)
    pid = pid_of(engine)
    while not starting.done():
        os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.001)
    await starting
    assert engine.pid == pid
    await engine.aclose()


async def test_the_process_list_says_what_it_is(launch: Launch) -> None:
    engine = await launch(None)
    child = await asyncio.to_thread(psutil.Process, pid_of(engine))
    assert "chatfleet.engines.child simulated" in " ".join(await asyncio.to_thread(child.cmdline))
    if sys.platform == "linux":
        assert await asyncio.to_thread(child.name) == "chatfleet-eng"


# --- loading ---


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("engines.process_backends:fails_to_load", "could not load: RuntimeError: the file is damaged"),
        ("engines.process_backends:misconfigured", "could not load: There is no model at /nowhere. Give the path"),
        ("engines.process_backends:dies_while_loading", r"died \(exit status 7\) while loading"),
        ("engines.process_backends:no_such_name", "could not load: AttributeError"),
        ("no_such_module:Backend", "could not load: ModuleNotFoundError"),
    ],
)
async def test_a_failed_start_gives_the_reason(launch: Launch, backend: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await launch(backend)
    assert await engine_children() == []


async def test_an_engine_that_nobody_knows_does_not_start() -> None:
    engine = ProcessEngine(EngineConfig(engine="engines.process_backends:FaultyBackend"))
    with pytest.raises(ConfigurationError, match="There is no engine"):
        await engine.start()
    await engine.aclose()


async def test_a_load_that_takes_too_long_is_ended(launch: Launch) -> None:
    with pytest.raises(ConfigurationError, match="did not load within 0.5 s. Allow more time"):
        await launch("engines.process_backends:never_loads", load_timeout_s=0.5)
    assert await engine_children() == []


async def test_a_cancelled_start_leaves_no_child() -> None:
    engine = make_engine("engines.process_backends:never_loads")
    starting = asyncio.ensure_future(engine.start())
    await eventually(lambda: engine.pid is not None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert engine.pid is None and await engine_children() == []


async def test_before_the_start_nothing_is_taken() -> None:
    engine = make_engine()
    with pytest.raises(EngineUnavailable, match="not been started"):
        engine.generate(PROMPT, sampling())
    with pytest.raises(EngineUnavailable):
        await engine.wait_ready()
    with pytest.raises(RuntimeError):
        _ = engine.capabilities
    await engine.aclose()


# --- embeddings ---


async def test_embeddings_come_in_the_order_of_their_inputs(launch: Launch) -> None:
    engine = await launch()
    prompts = [[index] for index in range(30, 80)]
    direct = SimulatedBackend(EngineConfig(engine="simulated"))
    assert await engine.embed(prompts) == [direct.embed(prompt) for prompt in prompts]
    assert await engine.embed([]) == []


async def test_generations_go_on_between_embeddings(launch: Launch) -> None:
    engine = await launch()
    embedding = asyncio.ensure_future(engine.embed([[65] * 2000] * 3000))
    assert len(await tokens_of(engine.generate(PROMPT, sampling(50)))) == 50
    assert not embedding.done()
    embedding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await embedding
    assert requests_in(engine) == 0
    assert len(await engine.embed([PROMPT])) == 1


async def test_the_first_embedding_that_fails_fails_the_call(launch: Launch) -> None:
    engine = await launch()
    with pytest.raises(InvalidRequest, match="outside"):
        await engine.embed([PROMPT, [1000], PROMPT])
    with pytest.raises(EngineError, match=r"\(RuntimeError\)"):
        await engine.embed([PROMPT, [THROWS], PROMPT])
    assert requests_in(engine) == 0 and engine.restarts == 0
    assert len((await engine.embed([PROMPT]))[0]) == 4 * 64


# --- the end ---


async def test_closing_fails_what_runs_and_ends_the_child(launch: Launch) -> None:
    engine = await launch(config={"sim_itl_ms": 10.0})
    pid = pid_of(engine)
    stream = engine.generate(PROMPT, sampling(4000))
    await anext(stream)
    await engine.aclose()
    assert not await exists(pid)
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await read(stream)
    with pytest.raises(EngineUnavailable, match="shutting down"):
        engine.generate(PROMPT, sampling())
    with pytest.raises(EngineUnavailable):
        await engine.wait_ready()
    await engine.aclose()


async def test_closing_kills_a_child_that_does_not_answer(launch: Launch) -> None:
    engine = await launch(shutdown_grace_s=0.2)
    pid = pid_of(engine)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE_S):
        await engine.aclose()
    assert not await exists(pid)


async def test_closing_during_a_restart_ends_it(launch: Launch) -> None:
    engine = await launch(restart_backoff_s=600.0, restart_backoff_max_s=600.0)
    os.kill(pid_of(engine), signal.SIGKILL)
    await eventually(lambda: not engine.ready and engine.pid is None)
    waiting = asyncio.ensure_future(engine.wait_ready())
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await engine.aclose()
    with pytest.raises(EngineUnavailable):
        await waiting


async def test_a_loop_that_ends_without_closing_leaves_no_child() -> None:
    async def careless() -> int:
        engine = make_engine(None)
        await engine.start()
        return pid_of(engine)

    pid = await asyncio.to_thread(asyncio.run, careless())
    assert not await exists(pid)


@pytest.mark.long
async def test_under_load_and_faults_every_stream_is_right_or_fails_clearly(launch: Launch) -> None:
    """Half a minute of streams, cancellations, failing steps, kills and stops, at random."""
    rng = random.Random(7)
    engine = await launch(
        config={"sim_itl_ms": 2.0, "sim_failure_rate": 0.05, "max_concurrency": 32},
        stall_timeout_s=0.5,
        healthy_after_s=0.0,
    )
    outcomes: Counter[str] = Counter()

    async def client(number: int) -> None:
        while time.monotonic() < end:
            first = THROWS if rng.random() < 0.01 else rng.randrange(32, 127)
            prompt, params = [first, *PROMPT, number], sampling(rng.randrange(1, 100), stop_token_ids=EOS)
            patience = rng.choice([math.inf, math.inf, 5])
            received: list[int] = []
            try:
                stream = engine.generate(prompt, params)
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        async for delta in stream:
                            received += delta.token_ids
                            if len(received) > patience:
                                outcomes["cancelled"] += 1
                                break
                        else:
                            outcomes["completed"] += 1
                            assert received == expected_tokens(prompt, params)
                finally:
                    await stream.aclose()
            except EngineUnavailable:
                outcomes["unavailable"] += 1
                await asyncio.sleep(0.02)
            except EngineError as exc:
                outcomes[str(exc)[:24]] += 1
                assert received == expected_tokens(prompt, params)[: len(received)]

    async def troublemaker() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            if engine.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(engine.pid, rng.choice([signal.SIGKILL, signal.SIGSTOP]))

    end = time.monotonic() + 30.0
    await asyncio.gather(troublemaker(), *map(client, range(64)))
    await ready_again(engine)
    assert requests_in(engine) == 0
    await eventually(lambda: (engine.stats().running, engine.stats().waiting) == (0, 0))
    assert len(outcomes) >= 6 and outcomes["completed"] > 100, outcomes
    print(outcomes)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_works_on_both_event_loops(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def scenario() -> None:
        engine = make_engine(config={"sim_itl_ms": 5.0}, stall_timeout_s=STALL_S)
        await engine.start()
        for number in (signal.SIGKILL, signal.SIGSTOP):
            stream = engine.generate(PROMPT, sampling(4000))
            await anext(stream)
            os.kill(pid_of(engine), number)
            with pytest.raises(EngineCrashed, match=r"signal 9|no sign of life"):
                async with asyncio.timeout(PATIENCE_S):
                    await read(stream)
            await ready_again(engine)
            assert len(await tokens_of(engine.generate(PROMPT, sampling(5)))) == 5
        running = engine.generate(PROMPT, sampling(4000))
        await engine.aclose()
        with pytest.raises(EngineUnavailable):
            await read(running)

    run(scenario())
    assert asyncio.run(engine_children()) == []


PARENT = """
    import asyncio, sys
    from chatfleet.engines.base import EngineConfig, SamplingParams
    from chatfleet.engines.process import ProcessEngine

    async def main():
        backend, token, guardian = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "guardian"
        engine = ProcessEngine(EngineConfig(engine="simulated"), backend=backend, use_guardian=guardian)
        if "never" in backend:
            asyncio.ensure_future(engine.start())
            while engine.pid is None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.0)
        else:
            await engine.start()
            stream = engine.generate([token], SamplingParams(max_tokens=4000))
            if token == 32:
                async for delta in stream:
                    pass
        print(engine.pid, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


def parent_with_a_child(backend: str, token: int, guardian: bool) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), backend, str(token), "guardian" if guardian else ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None and parent.stderr is not None
    child_pid = int(parent.stdout.readline())
    if token == HOLDS_THE_GIL:
        while "holding the GIL" not in parent.stderr.readline():
            pass
    family = psutil.Process(parent.pid).children(recursive=True)
    assert child_pid in [process.pid for process in family]
    assert len(family) == (2 if guardian else 1)
    return parent, family


@pytest.mark.parametrize("guardian", [False, True], ids=["kernel", "guardian"])
@pytest.mark.parametrize(
    ("backend", "token"),
    [(FAULTY, 32), (FAULTY, HOLDS_THE_GIL), ("engines.process_backends:never_loads", 32)],
    ids=["idle", "in a step that holds the GIL", "loading"],
)
def test_no_child_outlives_a_parent_that_is_killed(backend: str, token: int, guardian: bool) -> None:
    if not guardian and sys.platform != "linux":
        pytest.skip("only Linux has a parent-death signal")
    parent, family = parent_with_a_child(backend, token, guardian)
    with parent:
        parent.kill()
        deadline = time.monotonic() + PATIENCE_S
        while not all(map(is_gone, family)) and time.monotonic() < deadline:
            time.sleep(0.005)
    assert all(map(is_gone, family))


async def test_the_guardian_ends_with_its_engine(launch: Launch) -> None:
    engine = await launch(use_guardian=True)
    [guardian] = await asyncio.to_thread(lambda: psutil.Process(engine.pid).children())
    os.kill(pid_of(engine), signal.SIGKILL)
    await asyncio.to_thread(guardian.wait, PATIENCE_S)
    await ready_again(engine)
    assert len(await asyncio.to_thread(lambda: psutil.Process(engine.pid).children())) == 1
