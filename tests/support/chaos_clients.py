"""Clients of a chaos run: they ask one request after another, and look at every answer."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import httptools
import httpx
import openai

from support.chaos_answers import Answer, Malformed, Refused, differences, join_events
from support.chaos_requests import CHAT, Ask, Known

PATIENCE_S: Final = 90.0
"""How long any request may take, whatever goes wrong meanwhile."""

CROSSING_S: Final = 1.0
"""Within how long a request meets the end of its kept connection, where the two have crossed."""


class ConnectionLost(Exception):
    """The gateway ended the connection before the answer was complete; `began` is whether any of it had come."""

    def __init__(self, *, began: bool) -> None:
        super().__init__()
        self.began = began


class Refusing(Exception):
    """Nobody listens there."""


@dataclass
class Tally:
    """What came of all requests. `problems` are those that nothing excuses."""

    complete: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    pending: dict[int, str] = field(default_factory=dict)
    slowest_s: float = 0.0


class Circumstances(Protocol):
    """What clients know of the fleet that they ask."""

    gateway_urls: Sequence[str]
    made_at: float

    def gateway_killed_since(self, gateway: int, began: float) -> bool:
        """Whether this gateway has been killed since then (seconds of time.monotonic)."""

    def no_worker_until(self, gateway: int, failed: float) -> bool:
        """Whether no worker could have answered for as long as this gateway looks for one before it gives up."""


class Connection(asyncio.Protocol):
    """A kept connection to a gateway."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body = bytearray()
        self._began = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Raises Refusing."""
        host, _, port = url.removeprefix("http://").partition(":")
        try:
            _, made = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        except OSError as exc:
            raise Refusing from exc
        return made

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises ConnectionLost, and TimeoutError after PATIENCE_S."""
        if self._transport is None:
            raise ConnectionLost(began=False)
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._body.clear()
        self._began = False
        self._transport.write(request)
        async with asyncio.timeout(PATIENCE_S):
            return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(Malformed(f"the gateway does not speak HTTP: {exc}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionLost(began=self._began))

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Client:
    """Asks what it draws from `known` until it is told to stop, and then to the end of what it is at."""

    def __init__(self, number: int, seed: int, known: Sequence[Known], fleet: Circumstances, tally: Tally) -> None:
        self._number = number
        self._rng = random.Random(f"client {seed} {number}")
        self._known = known
        self._fleet = fleet
        self._tally = tally
        self._gateway = number
        self._asked_at = 0.0
        self._connection: Connection | None = None

    async def run(self, until: asyncio.Event) -> None:
        try:
            while not until.is_set():
                known = self._rng.choice(self._known)
                self._tally.pending[self._number] = known.ask.name
                began = time.monotonic()
                await self._complete(known)
                self._tally.slowest_s = max(self._tally.slowest_s, time.monotonic() - began)
                del self._tally.pending[self._number]
        finally:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _complete(self, known: Known) -> None:
        """Ask until there is an answer, where what stands between can be excused."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._asked_at = began = time.monotonic()
            try:
                found = await self._asked(known)
            except Refusing:
                if time.monotonic() > deadline:
                    self._problem(known, "no gateway takes it")
                    return
                self._go_elsewhere()
                await asyncio.sleep(0.05)
            except ConnectionLost as exc:
                if self._fleet.gateway_killed_since(self._at, began):
                    self._tally.excused["its gateway was killed"] += 1
                elif not exc.began and self._was_kept and time.monotonic() - began < CROSSING_S:
                    self._tally.excused["a kept connection was closed"] += 1
                else:
                    self._problem(known, "the gateway cut the connection" + (" midway" if exc.began else ""))
                    return
                self._go_elsewhere()
            except TimeoutError:
                self._problem(known, f"it did not end in {PATIENCE_S:g} s")
                self.close()
                return
            except Malformed as exc:
                self._problem(known, str(exc))
                self.close()
                return
            else:
                self._judge(known, found)
                return

    _was_kept = False

    @property
    def _at(self) -> int:
        return self._gateway % len(self._fleet.gateway_urls)

    def _go_elsewhere(self) -> None:
        self._gateway += 1

    async def _asked(self, known: Known) -> Answer | Refused:
        self._was_kept = self._connection is not None and self._connection.is_open
        if self._connection is None or not self._connection.is_open:
            self._connection = await Connection.open(self._fleet.gateway_urls[self._at])
        status, body = await self._connection.ask(known.http)
        return known.ask.read(status, body)

    def _judge(self, known: Known, found: Answer | Refused) -> None:
        if isinstance(found, Refused):
            if self._fleet.no_worker_until(self._at, time.monotonic()):
                self._tally.excused[f"no worker was there: {found.status or 'stream'} {found.error['code']}"] += 1
            else:
                self._problem(known, str(found))
        elif differing := differences(known.answer, found):
            self._problem(known, "; ".join(differing))
        else:
            self._tally.complete["streams" if known.ask.is_stream else "whole answers"] += 1

    def _problem(self, known: Known, problem: str) -> None:
        asked, now = (at - self._fleet.made_at for at in (self._asked_at, time.monotonic()))
        self._tally.problems.append(
            f"client {self._number} at gateway{self._at}, {known.ask.name}, {asked:.1f} to {now:.1f} s: {problem}"
        )


class SdkClient(Client):
    """The same through OpenAI's own client, which keeps its own connections."""

    _was_kept = True

    def __init__(self, number: int, seed: int, known: Sequence[Known], fleet: Circumstances, tally: Tally) -> None:
        super().__init__(number, seed, known, fleet, tally)
        options = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE_S}
        self._clients = [openai.AsyncOpenAI(base_url=f"{url}/v1", **options) for url in fleet.gateway_urls]

    async def run(self, until: asyncio.Event) -> None:
        try:
            await super().run(until)
        finally:
            for client in self._clients:
                await client.close()

    async def _asked(self, known: Known) -> Answer | Refused:
        parts: list[dict[str, Any]] = []
        try:
            return await self._create(known.ask, parts)
        except openai.APITimeoutError as exc:
            raise TimeoutError from exc
        except openai.APIConnectionError as exc:
            if isinstance(exc.__cause__, httpx.ConnectError):
                raise Refusing from exc
            raise ConnectionLost(began=False) from exc
        except httpx.TransportError as exc:
            raise ConnectionLost(began=True) from exc
        except openai.APIStatusError as exc:
            return known.ask.read(exc.status_code, exc.response.content)
        except openai.APIError as exc:
            join_events(parts, is_complete=False)
            return Refused(None, cast(dict[str, Any], exc.body))

    async def _create(self, ask: Ask, parts: list[dict[str, Any]]) -> Answer | Refused:
        client = self._clients[self._at]
        # The body goes out as it is: the client's own arguments do not have all of its fields.
        path = ask.path.removeprefix("/v1")
        if not ask.is_stream:
            whole = await client.post(path, body=ask.body, cast_to=httpx.Response)
            return ask.read(200, whole.content)
        if ask.path == CHAT:
            stream: Any = await client.chat.completions.create(messages=[], model="", stream=True, extra_body=ask.body)
        else:
            stream = await client.completions.create(prompt="", model="", stream=True, extra_body=ask.body)
        async for chunk in stream:
            parts.append(json.loads(chunk.to_json(indent=None)))
        return join_events(parts)


async def run_clients(clients: Sequence[Client], until: asyncio.Event, end_s: float, tally: Tally) -> None:
    """Returns when all have ended, which they get `end_s` for once `until` is set; who has not is a problem."""
    tasks = [asyncio.create_task(client.run(until)) for client in clients]
    try:
        stopping = asyncio.create_task(until.wait())
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _, late = await asyncio.wait(tasks, timeout=end_s)
        for number, name in tally.pending.items():
            if late:
                tally.problems.append(f"client {number}, {name}: it has not ended {end_s:g} s after the last incident")
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    with suppress(asyncio.CancelledError):
        await stopping
