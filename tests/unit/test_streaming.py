"""Event streams that end badly."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from chatfleet.core.errors import EngineCrashed, EngineUnavailable, InvalidRequest, ShuttingDown, UnsupportedParameter
from chatfleet.http.streaming import DONE, EventStreamResponse


class Source:
    """One event, then what the test says."""

    def __init__(self, last: Exception | None) -> None:
        self.closed = False
        self._events = self._run(last)

    async def _run(self, last: Exception | None) -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        if last is not None:
            raise last
        yield DONE

    def __aiter__(self) -> "Source":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        self.closed = True
        await self._events.aclose()


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def sent(last: Exception | None, *, can_be_continued: bool) -> list[Message]:
    """What a server is given to send."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    source = Source(last)
    response = await EventStreamResponse.open(_never, source, can_be_continued=can_be_continued)
    await response({"type": "http"}, _never, send)
    assert source.closed
    return messages


FAULTS = [EngineCrashed("x"), EngineUnavailable("x"), ShuttingDown(), RuntimeError("x")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_fault_of_ours_cuts_a_stream_that_can_be_continued(fault: Exception) -> None:
    messages = await sent(fault, can_be_continued=True)
    assert messages[-1] == {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_fault_is_told_in_a_stream_that_cannot_be_continued(fault: Exception) -> None:
    last = (await sent(fault, can_be_continued=False))[-1]
    assert last["body"].startswith(b'data: {"error":') and not last["more_body"]


@pytest.mark.parametrize(
    "fault", [InvalidRequest("x"), UnsupportedParameter("x")], ids=lambda fault: type(fault).__name__
)
async def test_what_no_other_worker_could_do_is_told_in_any_case(fault: Exception) -> None:
    last = (await sent(fault, can_be_continued=True))[-1]
    assert last["body"].startswith(b'data: {"error":') and not last["more_body"]


async def test_a_stream_that_goes_well_ends_as_ever() -> None:
    assert await sent(None, can_be_continued=True) == await sent(None, can_be_continued=False)
