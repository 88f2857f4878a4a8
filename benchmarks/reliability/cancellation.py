"""How soon the slot of a client that left is another's: through a gateway, at a worker with one slot.

A second request waits for the slot, and the time is taken from the moment the first client closes its connection to the
second one's first event. The first client leaves in the middle of a stream, before its first event, or while it waits
for a whole answer.

    python benchmarks/reliability/cancellation.py
"""

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from routing.two_workers import Part

PATH: Final = "/v1/chat/completions"
FIRST_TOKEN_MS: Final = 300.0


def body(*, stream: bool, tokens: int) -> dict[str, object]:
    return {
        "model": "simulated",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }


async def freed_after_s(url: str, *, stream: bool, begun: bool) -> float:
    """From the first client's leaving to the second one's first event."""
    async with aiohttp.ClientSession() as leaving, aiohttp.ClientSession() as staying:
        first = asyncio.ensure_future(leaving.post(url + PATH, json=body(stream=stream, tokens=4000)))
        if begun:
            response = await first
            await response.content.readany()
        else:
            await asyncio.sleep(0.05)
        second = asyncio.ensure_future(staying.post(url + PATH, json=body(stream=True, tokens=2)))
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        if begun:
            response.close()
        else:
            first.cancel()
        async with await second as answer:
            await answer.content.readany()
            return time.perf_counter() - started - FIRST_TOKEN_MS / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    with ExitStack() as stack:
        controller = stack.enter_context(Part("controller"))
        fleet = ("--controller-url", controller.url)
        paces = ("--sim-itl-ms", "20", "--sim-ttft-ms", str(FIRST_TOKEN_MS))
        stack.enter_context(Part("worker", "--engine", "simulated", "--max-concurrency", "1", *paces, *fleet))
        gateway = stack.enter_context(Part("gateway", *fleet))
        time.sleep(1.0)  # it knows the worker
        print("| the client leaves | p50 ms | most ms |\n|---|---|---|")
        for name, stream, begun in (
            ("in the middle of a stream", True, True),
            ("before its first event", True, False),
            ("while it waits for a whole answer", False, False),
        ):
            times = [asyncio.run(freed_after_s(gateway.url, stream=stream, begun=begun)) for _ in range(options.times)]
            print(f"| {name} | {statistics.median(times) * 1000:.1f} | {max(times) * 1000:.1f} |")


if __name__ == "__main__":
    main()
