"""Many clients at once."""

import asyncio
from collections.abc import Iterable

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from support.processes import Endpoint

STREAMS = 200


@pytest.fixture
def client(paced_endpoint: Endpoint) -> AsyncOpenAI:
    """Made here, because it reads files when it is made."""
    return AsyncOpenAI(base_url=f"{paced_endpoint.url}/v1", api_key="none", max_retries=0, timeout=100)


def question(number: int) -> Iterable[ChatCompletionMessageParam]:
    return [{"role": "user", "content": f"Question {number % 20}"}]


async def whole_answer(client: AsyncOpenAI, number: int) -> tuple[str | None, str | None]:
    answer = await client.chat.completions.create(model="simulated", messages=question(number), max_tokens=12)
    return answer.choices[0].message.content, answer.choices[0].finish_reason


async def streamed_answer(client: AsyncOpenAI, number: int) -> tuple[str | None, str | None]:
    text, reason = "", None
    async for chunk in await client.chat.completions.create(
        model="simulated", messages=question(number), max_tokens=12, stream=True
    ):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


@pytest.mark.long
async def test_two_hundred_streams_complete_each_with_its_own_answer(client: AsyncOpenAI) -> None:
    async with client:
        streamed = await asyncio.gather(*(streamed_answer(client, number) for number in range(STREAMS)))
        whole = [await whole_answer(client, number) for number in range(20)]
    assert len({text for text, _ in whole}) == 20
    assert list(streamed) == [whole[number % 20] for number in range(STREAMS)]
