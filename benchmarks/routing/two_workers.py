"""The time to the first token of growing conversations, over two real workers, by the gateway's policy.

A controller, two `chatfleet worker` on the OpenVINO engine (random weights: what they say is noise, at the speed of a
real model) and a gateway per policy, of which one is used at a time: rounds alternate. In a round some conversations
run at once, each turn by turn; they share a system prompt, and nothing with any other round, so that no round finds
the prompts of another in the workers' caches.

    python benchmarks/routing/two_workers.py
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from random import Random
from typing import Final, Self

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from make_model import DEFAULT_MODEL_DIR, ModelShape, ensure_model

POLICIES: Final = ("round_robin", "prefix_aware")
MODEL: Final = ModelShape(
    name="random-0.15b",
    vocab_size=32_000,
    hidden_size=896,
    layers=8,
    heads=14,
    kv_heads=2,
    ffn_size=4864,
    context_length=8192,
)
CONVERSATIONS, TURNS = 3, 6
SYSTEM_TOKENS, MESSAGE_TOKENS, ANSWER_TOKENS = 200, 200, 8
START_S: Final = 180.0

_URL = re.compile(r"(?:Controller|Gateway|Serving .+?) on (http://[^\s,/]+)")


class Part:
    """A `chatfleet` command as a process, on a free port; `url` once it listens."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-m", "chatfleet", *arguments, "--port", "0"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, text=True)
        self.url = self._announced()

    def _announced(self) -> str:
        deadline = time.monotonic() + START_S
        while not (found := _URL.search(self.output())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"it does not start:\n{self.output()}")
            time.sleep(0.05)
        return found[1]

    def output(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


async def run_round(url: str, model: str, seed: str) -> list[float]:
    """Milliseconds to the first token of every turn but the first."""
    rng = Random(seed)
    waits_ms: list[float] = []
    system = letters(rng, SYSTEM_TOKENS)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        conversations = (converse(session, model, system, Random(rng.random()), waits_ms) for _ in range(CONVERSATIONS))
        await asyncio.gather(*conversations)
    return waits_ms


async def converse(session: aiohttp.ClientSession, model: str, system: str, rng: Random, waits_ms: list[float]) -> None:
    messages = [{"role": "system", "content": system}]
    for turn in range(TURNS):
        messages.append({"role": "user", "content": letters(rng, MESSAGE_TOKENS)})
        answer, first_token_ms = await ask(session, model, messages)
        messages.append({"role": "assistant", "content": answer})
        if turn:
            waits_ms.append(first_token_ms)


async def ask(session: aiohttp.ClientSession, model: str, messages: Sequence[dict[str, str]]) -> tuple[str, float]:
    """The answer's text, and milliseconds to its first event."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began_s, first_s, text = time.perf_counter(), 0.0, ""
    async with session.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            first_s = first_s or time.perf_counter()
            event = json.loads(line.removeprefix(b"data: "))
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text, 1000 * (first_s - began_s)


def letters(rng: Random, tokens: int) -> str:
    """Letters with spaces between them: about one token each."""
    return " ".join(rng.choices("etaoinshrdlcumwfgypbvkjxqz", k=tokens))


def until_serving(gateway: Part) -> None:
    deadline = time.monotonic() + START_S
    while f"Serving {MODEL.name}" not in gateway.output():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it does not serve the model:\n{gateway.output()}")
        time.sleep(0.05)


def report(name: str, rounds: Sequence[list[float]]) -> str:
    waits_ms = [wait for one in rounds for wait in one]
    p50, p90 = statistics.median(waits_ms), statistics.quantiles(waits_ms, n=10)[8]
    each = ", ".join(f"{statistics.median(one):.0f}" for one in rounds)
    return f"| {name} | {p50:.0f} ms | {p90:.0f} ms | {each} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="of each policy (default: 4)")
    arguments = parser.parse_args()
    model_file = ensure_model(arguments.model_dir, MODEL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the parts end with this one
    rounds: dict[str, list[list[float]]] = {name: [] for name in POLICIES}
    seeds = (f"{time.time()} {number}" for number in count())
    with ExitStack() as parts:
        controller = parts.enter_context(Part("controller"))
        member = ("--controller-url", controller.url)
        worker = ("worker", str(model_file), "--model-name", MODEL.name, "--kv-cache-gb", "1", *member)
        for _ in range(2):
            parts.enter_context(Part(*worker))
        gateways = {name: parts.enter_context(Part("gateway", "--policy", name, *member)) for name in POLICIES}
        for gateway in gateways.values():
            until_serving(gateway)
            asyncio.run(run_round(gateway.url, MODEL.name, next(seeds)))  # the first rounds allocate
        for number in range(arguments.rounds):
            for name in POLICIES if number % 2 == 0 else reversed(POLICIES):
                rounds[name].append(asyncio.run(run_round(gateways[name].url, MODEL.name, next(seeds))))
                print(report(name, rounds[name][-1:]), file=sys.stderr, flush=True)
    print("| policy | first token p50 | p90 | p50 of each round, ms |")
    print("|---|---|---|---|")
    for name in POLICIES:
        print(report(name, rounds[name]))


if __name__ == "__main__":
    main()
