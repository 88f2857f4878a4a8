"""What it costs to be able to go on with a stream: bytes and CPU per token, with and without the ids of its tokens.

A controller, a `chatfleet worker` on the simulated engine and two gateways, of which one is used at a time: one keeps
ids, the other is told not to (`--recovery-buffer-kb 0`). Rounds alternate. CPU is the processes' own, from the system;
bytes are counted on the way from worker to gateway, by asking the worker as each gateway does.

    python benchmarks/reliability/carrying_ids.py
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from routing.two_workers import Part

from chatfleet.core.fleet import RECOVERY_HEADER, RECOVERY_IDS

PATH: Final = "/v1/chat/completions"
_TICKS_S: Final = os.sysconf("SC_CLK_TCK")
PACE_MS: Final = 20.0


class Cost(NamedTuple):
    """CPU per token, in microseconds, of the worker (without its engine process) and of the gateway."""

    worker_us: float
    gateway_us: float


def body(tokens: int) -> dict[str, object]:
    return {
        "model": "simulated",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


async def consume(session: aiohttp.ClientSession, url: str, tokens: int, **headers: str) -> int:
    """The bytes of a stream, which must come to its end."""
    size, last = 0, b""
    async with session.post(url + PATH, json=body(tokens), headers=headers) as response:
        response.raise_for_status()
        async for data in response.content.iter_any():
            size += len(data)
            last = (last + data)[-32:]
    if not last.endswith(b"data: [DONE]\n\n"):
        raise RuntimeError("a stream did not come to its end")
    return size


async def measure(worker: Part, gateway: Part, *, streams: int, tokens: int) -> Cost:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await consume(session, gateway.url, 8)
        before = cpu_s(worker.pid), cpu_s(gateway.pid)
        await asyncio.gather(*(consume(session, gateway.url, tokens) for _ in range(streams)))
        after = cpu_s(worker.pid), cpu_s(gateway.pid)
    per_token = 1e6 / (streams * tokens)
    return Cost((after[0] - before[0]) * per_token, (after[1] - before[1]) * per_token)


async def bytes_per_token(worker: Part, tokens: int) -> tuple[float, float]:
    """Without ids and with them, as they go over the wire but for the framing."""
    async with aiohttp.ClientSession() as session:
        without = await consume(session, worker.url, tokens)
        with_ids = await consume(session, worker.url, tokens, **{RECOVERY_HEADER: RECOVERY_IDS})
    return without / tokens, with_ids / tokens


def table(rows: dict[str, Sequence[Cost]], sizes: tuple[float, float]) -> str:
    lines = ["| ids | bytes a token | worker, us a token | gateway, us a token |", "|---|---|---|---|"]
    for (name, costs), size in zip(rows.items(), sizes, strict=True):
        worker = statistics.median(cost.worker_us for cost in costs)
        gateway = statistics.median(cost.gateway_us for cost in costs)
        lines.append(f"| {name} | {size:.0f} | {worker:.1f} | {gateway:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    with ExitStack() as stack:
        start = stack.enter_context
        controller = start(Part("controller"))
        fleet = ("--controller-url", controller.url)
        engine = ("--engine", "simulated", "--max-concurrency", "512", "--sim-itl-ms", str(PACE_MS))
        worker = start(Part("worker", *engine, *fleet))
        gateways = {
            "none": start(Part("gateway", "--recovery-buffer-kb", "0", *fleet)),
            "kept": start(Part("gateway", *fleet)),
        }
        time.sleep(1.0)  # both know the worker
        rows: dict[str, list[Cost]] = {name: [] for name in gateways}
        sizes = asyncio.run(bytes_per_token(worker, options.tokens))
        for number in range(options.rounds):
            for name in sorted(gateways, reverse=bool(number % 2)):
                cost = asyncio.run(measure(worker, gateways[name], streams=options.streams, tokens=options.tokens))
                rows[name].append(cost)
                print(f"round {number + 1}, {name}: {cost.worker_us:.1f} us, {cost.gateway_us:.1f} us", file=sys.stderr)
        print(table(rows, sizes))


if __name__ == "__main__":
    main()
