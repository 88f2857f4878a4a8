"""Clients that do not stop asking, whatever happens to the fleet, and miss nothing."""

import threading
import time
from types import TracebackType
from typing import Self

import httpx

from support.fleet import until
from support.wire import PATIENCE_S, Json, chat_texts, chunks, user

CHAT = "/v1/chat/completions"
QUESTIONS = 7


def question(number: int, tokens: int) -> Json:
    return {"messages": user(f"Question {number % QUESTIONS}"), "max_tokens": tokens, "ignore_eos": True}


class Load:
    """`clients` threads that ask one request after another, streams and whole answers in turn, on connections that are
    kept, and know what each has to be answered.

    Where an endpoint refuses the connection, they go on to the next of `urls`. Whatever else is no good answer is one
    of `failures`, and is told at the end.
    """

    def __init__(self, *urls: str, clients: int = 8, tokens: int = 12) -> None:
        self.urls = urls
        self.answered = 0
        self.refused = 0
        self.failures: list[str] = []
        self._tokens = tokens
        self._expected: dict[int, str] = {}
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    def more(self, answers: int = 30) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + answers
        until(lambda: self.answered >= wanted or self.failures, f"{answers} more answers")
        assert not self.failures, self.failures

    def _run(self, client: int) -> None:
        try:
            with httpx.Client(timeout=PATIENCE_S) as http:
                number = client
                while not self._ending.is_set():
                    text = self._ask(http, client, number)
                    with self._lock:
                        self.answered += 1
                        if self._expected.setdefault(number % QUESTIONS, text) != text:
                            self.failures.append(f"another answer: {text!r}")
                    number += 1
        except BaseException as exc:
            self.failures.append(f"{type(exc).__name__}: {exc}")

    def _ask(self, http: httpx.Client, client: int, number: int) -> str:
        stream = number % 2 == 0
        body = {**question(number, self._tokens), "stream": stream}
        at, deadline = client, time.monotonic() + PATIENCE_S
        while True:
            try:
                response = http.post(self.urls[at % len(self.urls)] + CHAT, json=body)
            except httpx.ConnectError:
                if time.monotonic() > deadline:
                    raise
                self.refused += 1
                at += 1
                time.sleep(0.01)
                continue
            if stream:
                return chat_texts(chunks(response))[0]
            assert response.status_code == 200, response.text
            text: str = response.json()["choices"][0]["message"]["content"]
            return text

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if error is None:
            assert not self.failures, self.failures
