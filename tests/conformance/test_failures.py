"""A step that throws and a process that is killed, for every engine."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from chatfleet.core.errors import EngineCrashed, EngineError
from conformance import failing
from conformance.subject import Answer, Subject, eventually, running
from conformance.targets import Loadable
from support.wire import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "Tell me a story."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(loadable: Loadable) -> AsyncIterator[Subject]:
    """One whose steps can be told to throw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
        async with running(loadable, backend=failing.PATH) as subject:
            yield subject


async def begun_streams(subject: Subject, count: int) -> list[asyncio.Task[Answer]]:
    """Requests that are running and far from done."""
    before, stats = subject.engine.stats().generated_tokens, subject.engine.stats
    requests = [subject.generate(subject.tokens(9, number), max_tokens=900) for number in range(count)]
    tasks = [asyncio.ensure_future(request) for request in requests]
    await eventually(lambda: stats().running == count and stats().generated_tokens > before)
    return tasks


@pytest.mark.parametrize("order", [failing.THROWS_BEFORE, failing.THROWS_AFTER], ids=["before", "after"])
async def test_a_step_that_throws_ends_what_runs_with_an_error_and_the_engine_lives(
    subject: Subject, order: list[int]
) -> None:
    before = await subject.generate(subject.prompt(QUESTION))
    pid = subject.engine.pid
    running_ones = await begun_streams(subject, 5)
    with pytest.raises(EngineError, match="while this request was running"):
        await subject.generate([*order, *subject.tokens(4)])
    for outcome in await asyncio.gather(*running_ones, return_exceptions=True):
        assert isinstance(outcome, EngineError) and not isinstance(outcome, EngineCrashed), outcome
    await ready_again(subject)
    await subject.settled()
    assert (await subject.generate(subject.prompt(QUESTION))).token_ids == before.token_ids
    assert subject.engine.pid == pid and subject.engine.restarts == 0


async def test_a_killed_process_fails_what_runs_and_comes_back(subject: Subject) -> None:
    before = await subject.generate(subject.prompt(QUESTION))
    restarts, pid = subject.engine.restarts, subject.engine.pid
    running_ones = await begun_streams(subject, 5)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for outcome in await asyncio.gather(*running_ones, return_exceptions=True):
        assert isinstance(outcome, EngineCrashed), outcome
    await ready_again(subject)
    assert subject.engine.restarts == restarts + 1 and subject.engine.pid != pid
    assert (await subject.generate(subject.prompt(QUESTION))).token_ids == before.token_ids


async def ready_again(subject: Subject) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await subject.engine.wait_ready()
