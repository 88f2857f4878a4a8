"""What a check has: ways to ask, and what it has asked."""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from chatfleet.doctor.client import Answer, Client, Failed, Json, Request, Unsupported, events_of
from chatfleet.doctor.shapes import CHAT, CHUNK, COMPLETION, USAGE, must_be_usage, must_fit, require

MAX_REQUESTS: Final = 12
"""Of one check. One that needs more is two."""

QUESTION: Final = "Tell me about the city of Paris."
STEADY: Final[Json] = {"temperature": 0, "seed": 7, "max_tokens": 32}
"""What makes answers repeat, where anything does, and keeps them short."""

CHAT_PATH: Final = "/chat/completions"
COMPLETIONS_PATH: Final = "/completions"

_REFUSALS: Final = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|extra inputs|disabled|enable|"
    r"not (?:allowed|permitted|available|implemented|found)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Check:
    """`fields` are the names of what it is about: a server that refuses one of them by name does not support it. A
    check without fields is about what every server must do."""

    name: str
    title: str
    fields: tuple[str, ...]
    run: "Run"

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]


Run = Callable[["Context"], Awaitable[None]]


class Context:
    """For one run of one check. Requests over MAX_REQUESTS are refused. `requests` are those sent, in order."""

    def __init__(self, client: Client, check: Check) -> None:
        self._client = client
        self._fields = check.fields
        self.model = client.model
        self.requests: list[Request] = []

    async def get(self, path: str) -> Answer:
        return await self._client.send(self._noted("GET", path))

    async def delete(self, path: str) -> Answer:
        return await self._client.send(self._noted("DELETE", path))

    async def post(self, path: str, body: Json | bytes | None = None) -> Answer:
        return await self._client.send(self._noted("POST", path, body))

    async def leave(self, path: str, body: Json) -> None:
        """Begin to read an answer and close the connection."""
        await self._client.leave(self._noted("POST", path, body))

    async def ask(self, path: str, body: Json) -> Any:
        """The JSON of an answer with status 200.

        Raises Unsupported when the server refuses what the check is about, and Failed for any other status.
        """
        answer = await self.post(path, {"model": self.model, **body})
        self.must_be_granted(answer)
        return answer.json()

    async def chat(self, **fields: Any) -> Json:
        """A whole chat completion, of the reference's form. `fields` are set over a short, steady request."""
        answer = await self.ask(CHAT_PATH, {**chat_body(), **fields})
        must_fit(answer, CHAT, "The answer")
        require(answer["choices"], "The answer has no choices.")
        must_be_usage(answer["usage"])
        return dict(answer)

    async def chat_stream(self, **fields: Any) -> list[Json]:
        """The chunks of a chat completion's stream, each of the reference's form."""
        return await self._chunks(CHAT_PATH, {**chat_body(), **fields}, CHUNK)

    async def completion(self, **fields: Any) -> Json:
        answer = await self.ask(COMPLETIONS_PATH, {"prompt": "Once upon a time", **STEADY, **fields})
        must_fit(answer, COMPLETION, "The answer")
        require(answer["choices"], "The answer has no choices.")
        must_fit(answer.get("usage"), USAGE, "usage")
        must_be_usage(answer["usage"])
        return dict(answer)

    async def completion_stream(self, **fields: Any) -> list[Json]:
        body = {"prompt": "Once upon a time", **STEADY, **fields}
        return await self._chunks(COMPLETIONS_PATH, body, COMPLETION)

    async def must_know(self, field: str, wrong: Any) -> None:
        """Raises Unsupported unless the server knows a field that the reference does not have: one that does refuses
        a value of the wrong type, one that does not takes it."""
        answer = await self.post(CHAT_PATH, {"model": self.model, **chat_body(), field: wrong})
        if answer.status == 200:
            raise Unsupported(f"The server does not look at {field}: it takes {wrong!r} for it.")

    def must_be_granted(self, answer: Answer) -> None:
        """Raises Unsupported or Failed unless the status is 200."""
        if answer.status == 200:
            return
        message, param = answer.error_message(), answer.error_param()
        names = [field for field in self._fields if field in message or param.startswith(field)]
        if self._fields and answer.status in (404, 405, 501):
            raise Unsupported(f"Status {answer.status}: {message or answer.start()}")
        if self._fields and answer.status in (400, 422) and message and (names or _REFUSALS.search(message)):
            raise Unsupported(message)
        raise Failed(f"The status is {answer.status}, not 200. It says: {message or answer.start()}")

    async def _chunks(self, path: str, body: Json, shape: Any) -> list[Json]:
        answer = await self.post(path, {"model": self.model, **body, "stream": True})
        self.must_be_granted(answer)
        *data, last = events_of(answer) or [""]
        require(last == "[DONE]", f"The last event is not [DONE] but {last[:200]!r}.")
        chunks = [_parsed(item) for item in data]
        for index, chunk in enumerate(chunks):
            if isinstance(chunk, dict) and chunk.get("error"):
                raise Failed(f"The stream has an error in it: {json.dumps(chunk['error'])[:300]}")
            must_fit(chunk, shape, f"Event {index}")
        require(chunks, "The stream has no events but [DONE].")
        return chunks

    def _noted(self, method: str, path: str, body: Json | bytes | None = None) -> Request:
        assert len(self.requests) < MAX_REQUESTS, "a check with too many requests"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body, ensure_ascii=False).encode()
        self.requests.append(self._client.request(method, path, data))
        return self.requests[-1]


class Collection:
    """The checks of a module, in the order in which they stand there."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def check(self, name: str, title: str, *fields: str) -> Callable[[Run], Run]:
        """A function as the check `name`, which is group.what; see `Check` for the others."""

        def collect(run: Run) -> Run:
            self.checks.append(Check(name, title, fields, run))
            return run

        return collect


def chat_body(content: str = QUESTION) -> Json:
    return {"messages": user(content), **STEADY}


def user(content: str) -> list[Json]:
    """The messages of a conversation that has just begun."""
    return [{"role": "user", "content": content}]


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Failed(f"The data of an event is no JSON: {data[:200]!r}") from None


def message_of(answer: Json, index: int = 0) -> Json:
    return dict(answer["choices"][index]["message"])


def said(message: Json) -> str:
    """All that the model wrote: reasoning, where it is told apart, and text."""
    return reasoning_of(message) + (message.get("content") or "")


def reasoning_of(message: Json) -> str:
    """Of a message or a delta, under either of the names in use."""
    found = message.get("reasoning_content") or message.get("reasoning")
    return found if isinstance(found, str) else ""


def streamed(chunks: list[Json], index: int = 0) -> str:
    """All text of a choice in a chat stream."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(map(reasoning_of, deltas)) + "".join(delta.get("content") or "" for delta in deltas)


def finishes(chunks: list[Json], index: int = 0) -> list[str]:
    """The finish reasons that a stream gives for a choice."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]


def need_text(text: str) -> str:
    """Raises Unsupported where the model was silent: nothing can be seen then."""
    if not text:
        raise Unsupported("The model answers the request with no text, so that nothing can be seen.")
    return text
