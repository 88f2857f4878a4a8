"""Streams over HTTP from any OpenAI-compatible server, as cheaply as Python can.

The client runs on the cores of what it measures. So there is one asyncio protocol per stream that looks for patterns in
the raw bytes and decodes nothing; the `openai` package would cost more than some of what is measured.
"""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import uvloop

EXACT = {"ignore_eos": True, "stream_options": {"include_usage": True}}
"""The `extra` of most servers: ours, vLLM's and llama.cpp's."""

STREAM_PATIENCE_S = 300.0

_TEXT_EVENT = re.compile(rb'"content": ?"[^"]')  # some servers first send an event without text, before any token
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_LAST_CHUNK = b"\r\n0\r\n\r\n"  # `transformers serve` sends no [DONE]
_TAIL_BYTES = 2000
_PROBE_LETTERS = 10


@dataclass(frozen=True)
class Arrival:
    """Events with text that came in one read."""

    at_s: float
    events: int


@dataclass(frozen=True)
class Answer:
    """One stream: moments on `time.perf_counter`, and its token counts by the server's own account.

    A token of which only a part of a character came has no event, so there may be fewer events than tokens.
    """

    sent_s: float
    done_s: float
    arrivals: tuple[Arrival, ...]
    prompt_tokens: int
    completion_tokens: int

    @property
    def first_s(self) -> float:
        """When the first text came; not a number when none did."""
        return self.arrivals[0].at_s if self.arrivals else float("nan")


class StreamClient(asyncio.Protocol):
    """Waits for its connection, then `send` sends one request; `answer` is done when the stream is, or raises
    RuntimeError when it breaks off, is refused or tells no usage."""

    def __init__(self) -> None:
        self._sent_s = 0.0
        self._arrivals: list[Arrival] = []
        self._tail = b""
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self, request: bytes) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.answer.done():
            return
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._fail(f"the request was refused: {data[:_TAIL_BYTES].decode(errors='replace')}")
            return
        if events := len(_TEXT_EVENT.findall(data)):
            self._arrivals.append(Arrival(now, events))
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if b"data: [DONE]" in self._tail or self._tail.endswith(_LAST_CHUNK):
            self._finish(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self._fail(f"the stream broke off: {self._tail.decode(errors='replace')}")

    def _finish(self, now: float) -> None:
        prompt, completion = _PROMPT_TOKENS.search(self._tail), _COMPLETION_TOKENS.search(self._tail)
        if prompt is None or completion is None:
            self._fail(f"no usage at the end of the stream: {self._tail.decode(errors='replace')}")
            return
        self._transport.close()
        answer = Answer(self._sent_s, now, tuple(self._arrivals), int(prompt[1]), int(completion[1]))
        self.answer.set_result(answer)

    def _fail(self, why: str) -> None:
        self._transport.close()
        self.answer.set_exception(RuntimeError(why))


class ChatClient:
    """Asks the model on a port. `extra` is what the server needs in a request to make exactly `max_tokens` tokens and
    to tell how many they were."""

    def __init__(self, port: int, model: str, extra: Mapping[str, Any]) -> None:
        self._port = port
        self._model = model
        self._extra = extra
        self._seeds = count(int.from_bytes(os.urandom(4), "little"))  # no prompt is in a cache
        self._template_tokens: int | None = None

    def ask(self, streams: int, prompt_tokens: int, completion_tokens: int) -> list[Answer]:
        """All streams at once, to their end.

        Raises RuntimeError when one fails or has other numbers of tokens, by the server's own account.
        """
        if self._template_tokens is None:
            (probe,) = self._at_once([self._request(_PROBE_LETTERS, 1)])
            self._template_tokens = probe.prompt_tokens - _PROBE_LETTERS
        letters = prompt_tokens - self._template_tokens
        if letters < 1:
            raise RuntimeError(f"the chat template alone takes {self._template_tokens} of {prompt_tokens} tokens")
        answers = self._at_once([self._request(letters, completion_tokens) for _ in range(streams)])
        for answer in answers:
            counts = answer.prompt_tokens, answer.completion_tokens
            if counts != (prompt_tokens, completion_tokens):
                raise RuntimeError(f"asked for {prompt_tokens} and {completion_tokens} tokens, got {counts}")
        return answers

    def _request(self, letters: int, completion_tokens: int) -> bytes:
        message = " ".join(random.Random(next(self._seeds)).choices("etaoinshrdlcumwfgypbvkjxqz", k=letters))
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": message}],  # a token for each letter, with the space before it
            "max_tokens": completion_tokens,
            "temperature": 0,
            "stream": True,
            **self._extra,
        }
        encoded = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\ncontent-type: application/json"
        return f"{head}\r\ncontent-length: {len(encoded)}\r\n\r\n".encode() + encoded

    def _at_once(self, requests: Sequence[bytes]) -> list[Answer]:
        return uvloop.run(asyncio.wait_for(_stream_all(self._port, requests), STREAM_PATIENCE_S))


async def _stream_all(port: int, requests: Sequence[bytes]) -> list[Answer]:
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(StreamClient, "127.0.0.1", port))[1] for _ in requests]
    for client, request in zip(clients, requests, strict=True):
        client.send(request)
    return await asyncio.gather(*(client.answer for client in clients))
