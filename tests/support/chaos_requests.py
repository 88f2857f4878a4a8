"""The requests of a chaos run, of every sort that a client may send, and their undisturbed answers."""

import json
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from support.chaos_answers import Answer, Refused, read_stream, read_whole
from support.wire import Json, head, user

MODEL: Final = "chaos"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_WHOLE_TOKENS: Final = 60
_USAGE: Final[Json] = {"stream_options": {"include_usage": True}}
_TORN: Final[Json] = {"195": 20, "169": 20, "240": 19, "159": 20, "152": 20}
"""Bytes of characters beyond ASCII, as likely as the script: whole characters and parts of them."""


@dataclass(frozen=True)
class Ask:
    """One request. `name` says what is special about it."""

    name: str
    path: str
    fields: Json
    is_stream: bool = True

    @property
    def body(self) -> Json:
        return {"model": MODEL, "stream": self.is_stream, **self.fields}

    @property
    def http(self) -> bytes:
        content = json.dumps(self.body).encode()
        return head("POST", self.path, f"content-length: {len(content)}") + content

    def read(self, status: int, body: bytes) -> Answer | Refused:
        """Raises Malformed."""
        return (read_stream if self.is_stream else read_whole)(status, body)


@dataclass(frozen=True)
class Known:
    """A request and what is answered to it when nothing goes wrong."""

    ask: Ask
    answer: Answer
    http: bytes = field(repr=False)


Answering = Callable[[Ask], Awaitable[Answer | Refused]]


async def known_requests(asks: list[Ask], answering: Answering) -> list[Known]:
    """The requests with the answers of an undisturbed worker, and for some of them one that stops at a string out
    of the middle of that."""
    known = []
    for ask in asks:
        answer = await _answered(ask, answering)
        known.append(Known(ask, answer, ask.http))
        if (stop := _stop_string(answer.choices[0].text)) and ask.name.endswith("to be stopped"):
            stopped = Ask(ask.name.replace("to be stopped", "stopped"), ask.path, {**ask.fields, "stop": stop})
            known.append(Known(stopped, await _answered(stopped, answering), stopped.http))
    return known


async def _answered(ask: Ask, answering: Answering) -> Answer:
    answer = await answering(ask)
    if isinstance(answer, Refused):
        raise AssertionError(f"an undisturbed worker refuses {ask.name}: {answer}")
    return answer


def _stop_string(text: str) -> list[str]:
    """One that comes up late, and one that never does although each of its beginnings may."""
    start = int(len(text) * 0.7)
    late = text[start : start + 7]
    return [late, text[start : start + 5] + "\N{SNOWMAN}"] if text.find(late) == start else []


def simulated_asks() -> list[Ask]:
    """About forty requests for the simulated engine, whose undisturbed answers have 60 to 400 tokens."""
    return [*_chats(), *_completions(), *_wholes()]


def _chats() -> Iterator[Ask]:
    def chat(name: str, **fields: object) -> Ask:
        return Ask(f"chat, {name}", CHAT, {"messages": user(name), **fields})

    for number in range(6):
        yield chat(f"plain {number}", **(_USAGE if number % 2 else {}))
    for number in range(3):
        yield chat(f"long {number}", max_tokens=300, min_tokens=250, **_USAGE)
    for number in range(4):
        yield chat(f"stop {number} to be stopped", **_USAGE)
    for number in (2, 3, 4):
        yield chat(f"n={number}", n=number, max_tokens=120, **_USAGE)
    yield chat("n=2, seeded", n=2, seed=3, temperature=1.5, max_tokens=150)
    for number in range(3):
        yield chat(f"logprobs {number}", logprobs=True, top_logprobs=number, max_tokens=150, **_USAGE)
    for seed in range(3):
        sampling = {"temperature": 1.4, "seed": seed, "top_p": 0.95, "max_tokens": 200}
        penalties = {"presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.1}
        yield chat(f"seed {seed} and penalties", **sampling, **penalties, **_USAGE)
    yield chat("penalties alone to be stopped", frequency_penalty=0.8, presence_penalty=0.5, max_tokens=200)
    for seed in range(2):
        torn = {"logit_bias": _TORN, "temperature": 1.0, "seed": seed, "max_tokens": 150}
        yield chat(f"torn characters {seed}", **torn, **_USAGE)
    torn = {"logit_bias": _TORN, "temperature": 1.0, "seed": 7, "max_tokens": 120}
    yield chat("torn characters with logprobs", logprobs=True, top_logprobs=2, **torn)


def _completions() -> Iterator[Ask]:
    def completion(name: str, **fields: object) -> Ask:
        return Ask(f"completion, {name}", COMPLETIONS, {"prompt": name, **fields})

    for number in range(3):
        yield completion(f"plain {number}", max_tokens=200, **(_USAGE if number % 2 else {}))
    yield completion("stop to be stopped", max_tokens=300, **_USAGE)
    yield completion("echo and logprobs", max_tokens=120, echo=True, logprobs=2, **_USAGE)
    yield completion("logprobs", max_tokens=120, logprobs=3)
    yield completion("n=2", n=2, seed=5, temperature=1.2, max_tokens=120, **_USAGE)
    yield completion("two prompts", **{"prompt": ["first of two", "second"], "n": 2, "max_tokens": 90, **_USAGE})


def _wholes() -> Iterator[Ask]:
    for number in range(3):
        fields: Json = {"messages": user(f"whole {number}"), "max_tokens": _WHOLE_TOKENS}
        yield Ask(f"whole chat {number}", CHAT, fields, is_stream=False)
    fields = {"messages": user("whole"), "max_tokens": _WHOLE_TOKENS, "n": 2, "logprobs": True, "seed": 1}
    yield Ask("whole chat with logprobs", CHAT, fields, is_stream=False)
    fields = {"prompt": "whole", "max_tokens": _WHOLE_TOKENS, "echo": True}
    yield Ask("whole completion", COMPLETIONS, fields, is_stream=False)


def greedy_asks() -> list[Ask]:
    """A few requests for a real model."""
    rng = random.Random("greedy")
    subjects = ["the sea", "a lighthouse", "bread", "winter", "a small dog", "the moon"]
    asks = []
    for number, subject in enumerate(subjects):
        fields: Json = {"messages": user(f"Tell me about {subject}."), "temperature": 0}
        fields |= {"max_tokens": rng.randrange(150, 300), "ignore_eos": True}
        asks.append(Ask(f"chat, {subject}", CHAT, {**fields, **(_USAGE if number % 2 else {})}))
    fields = {"messages": user("Hello!"), "temperature": 0, "max_tokens": 80, "ignore_eos": True, **_USAGE}
    asks.append(Ask("chat, greeting to be stopped", CHAT, fields))
    fields = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 80, "ignore_eos": True, "n": 2}
    asks.append(Ask("completion, n=2", COMPLETIONS, fields))
    return asks
