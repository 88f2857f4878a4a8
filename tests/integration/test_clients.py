"""Official clients against a real worker that serves the bundled model: answers with sense."""

import base64
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from support.processes import Endpoint

MODEL = "chatfleet-tiny"


@pytest.fixture
def client(tiny_endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_endpoint.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, *messages: tuple[str, str], **options: Any) -> str:
    """The greedy answer to (role, content) pairs."""
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": role, "content": content} for role, content in messages],  # type: ignore[misc]
        **{"temperature": 0, **options},
    )
    content = completion.choices[0].message.content
    assert content is not None
    return content


def test_the_sdk_lists_the_model(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="chatfleet-tiny"):
        client.models.retrieve("absent")


def test_the_sdk_chats(client: openai.OpenAI) -> None:
    assert "Paris" in ask(client, ("user", "What is the capital of France?"))
    assert "42" in ask(client, ("user", "What is 17 + 25?"))
    assert "ChatFleet" in ask(client, ("user", "Who are you?"))


def test_a_second_turn_refers_to_the_first(client: openai.OpenAI) -> None:
    first = ("user", "What is the capital of France?")
    answer = ask(client, first)
    second = ask(client, first, ("assistant", answer), ("user", "And what is its population?"))
    assert "million" in second


def test_a_system_message_is_obeyed(client: openai.OpenAI) -> None:
    for role in ("system", "developer"):
        answer = ask(client, (role, "Answer in upper case."), ("user", "What is the capital of Italy?"))
        assert answer == answer.upper()
        assert "ROME" in answer


def test_the_sdk_streams_a_chat(client: openai.OpenAI) -> None:
    question = ("user", "What is deep learning?")
    whole = ask(client, question)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question[1]}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole
    assert "learning" in text
    assert len(chunks) > 5, "it did not come token by token"
    usage = chunks[-1].usage
    assert usage is not None
    assert chunks[-1].choices == []
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_the_async_sdk_streams_several_chats_at_once(tiny_endpoint: Endpoint) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{tiny_endpoint.url}/v1", api_key="none") as client:

        async def capital(country: str) -> str:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
                temperature=0,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*map(capital, ["France", "Japan", "Italy", "Spain"]))
    for city, answer in zip(["Paris", "Tokyo", "Rome", "Madrid"], answers, strict=True):
        assert city in answer


def test_a_completion_continues_a_story_to_its_end(client: openai.OpenAI) -> None:
    completion = client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=400)
    choice = completion.choices[0]
    assert choice.finish_reason == "stop"
    assert len(choice.text.split()) > 20
    assert choice.text.rstrip()[-1] in ".!?"
    chunks = list(
        client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=400, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text


def test_log_probabilities_describe_the_answer(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], temperature=0, logprobs=True
    )
    choice = completion.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content
    spelled = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert spelled.decode() == choice.message.content
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    assert math.exp(choice.logprobs.content[0].logprob) > 0.1, "the likeliest token is not likely"


def test_embeddings_of_alike_texts_are_alike(client: openai.OpenAI) -> None:
    texts = ["What is the capital of France?", "What is the capital of Spain?", "Once upon a time there was a fox."]
    response = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    near, other, far = (item.embedding for item in response.data)
    cosine = [sum(a * b for a, b in zip(near, x, strict=True)) for x in (other, far)]
    assert cosine[0] > cosine[1]
    assert math.isclose(sum(x * x for x in near), 1, abs_tol=1e-3)
    packed = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="base64").data[0].embedding
    assert len(base64.b64decode(str(packed))) == 4 * len(near)
    assert response.usage.prompt_tokens > 0


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather at a place",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}


def test_a_tool_call_its_result_and_the_answer(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    called = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert called.finish_reason == "tool_calls" and called.message.content is None
    (call,) = called.message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"location": "Oslo"}
    messages.append(called.message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 7, "condition": "rain"}'})
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "7" in (answer.choices[0].message.content or "")


def test_of_several_tools_only_those_allowed_are_called(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    clock: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
    allowed: Any = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    choice = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[WEATHER, clock],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        temperature=0,
    ).choices[0]
    called = [call.function.name for call in choice.message.tool_calls or [] if call.type == "function"]
    assert called == ["get_time"] or (not called and choice.message.content)


def test_two_calls_in_one_turn_and_their_results(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo and in Rome?"}]
    called = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0).choices[0]
    calls = called.message.tool_calls or []
    assert [json.loads(call.function.arguments)["location"] for call in calls if call.type == "function"] == [
        "Oslo",
        "Rome",
    ]
    assert calls[0].id != calls[1].id
    messages.append(called.message)
    for call in calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 7, "condition": "rain"}'})
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert all(word in (answer.choices[0].message.content or "") for word in ("Oslo", "7", "Rome"))
    alone = client.chat.completions.create(
        model=MODEL, messages=messages[:1], tools=[WEATHER], temperature=0, parallel_tool_calls=False
    )
    assert len(alone.choices[0].message.tool_calls or []) == 1


def test_a_streamed_call_gives_its_name_first_and_then_its_arguments(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0, stream=True)
    )
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    first, *rest = pieces
    assert first.function is not None and first.function.name == "get_weather" and first.id and first.index == 0
    assert len(rest) > 2 and all(piece.id is None and piece.index == 0 for piece in rest)
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert json.loads(arguments) == {"location": "Oslo"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_langchain_calls_tools_and_structures(tiny_endpoint: Endpoint) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=f"{tiny_endpoint.url}/v1", api_key="none", model=MODEL, temperature=0)  # type: ignore[arg-type]
    called = chat.bind_tools([WEATHER]).invoke("What is the weather in Oslo?")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"location": "Oslo"})]
    schema = {
        "title": "city",
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
        "required": ["name", "big"],
        "additionalProperties": False,
    }
    made = chat.with_structured_output(schema, method="json_schema").invoke("Is Paris a big city?")
    assert isinstance(made, dict) and made.keys() == {"name", "big"} and isinstance(made["big"], bool)


def test_langchain_chats_and_streams(tiny_endpoint: Endpoint) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(base_url=f"{tiny_endpoint.url}/v1", api_key="none", model=MODEL, temperature=0)  # type: ignore[arg-type]
    assert "Paris" in str(chat.invoke("What is the capital of France?").content)
    streamed = list(chat.stream("What is the capital of France?"))
    assert "Paris" in "".join(str(chunk.content) for chunk in streamed)
    assert len(streamed) > 3
    embeddings = OpenAIEmbeddings(
        base_url=f"{tiny_endpoint.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model=MODEL,
        check_embedding_ctx_length=False,  # else it sends token ids of OpenAI's own vocabulary
    )
    assert len(embeddings.embed_query("hello")) > 8


def test_curl_chats_and_streams(tiny_endpoint: Endpoint) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    common = ["curl", "-sS", "-N", f"{tiny_endpoint.url}/v1/chat/completions", "-H", "content-type: application/json"]
    whole = subprocess.run([*common, "-d", json.dumps(body)], capture_output=True, check=True, timeout=60)
    assert "Paris" in json.loads(whole.stdout)["choices"][0]["message"]["content"]
    body["stream"] = True
    streamed = subprocess.run([*common, "-d", json.dumps(body)], capture_output=True, check=True, timeout=60)
    events = streamed.stdout.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-2]]
    assert "Paris" in "".join(delta.get("content", "") for delta in deltas)


def test_the_terminal_chat_answers(tiny_endpoint: Endpoint) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "chatfleet", "chat", "--base-url", f"{tiny_endpoint.url}/v1", "--temperature", "0"],
        input="What is the capital of France?\nAnd what is its population?\n/exit\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "TERM": "dumb"},
    )
    assert "Paris" in said.stdout
    assert "million" in said.stdout


async def test_200_concurrent_streams_complete(tiny_endpoint: Endpoint) -> None:
    import asyncio

    import httpx

    limits = httpx.Limits(max_connections=200)
    async with (
        httpx.AsyncClient(timeout=110, limits=limits) as http,
        openai.AsyncOpenAI(
            base_url=f"{tiny_endpoint.url}/v1", api_key="none", http_client=http, max_retries=0
        ) as client,
    ):

        async def add(a: int) -> bool:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"What is {a % 50} + {a // 50}?"}],
                temperature=0,
                stream=True,
            )
            chunks = [chunk async for chunk in stream]
            return chunks[-1].choices[0].finish_reason == "stop"

        assert all(await asyncio.gather(*map(add, range(200))))
