"""What serving costs: streams over HTTP against the same pipeline driven in process, alternating, in one run.

Both sides are loaded, each in its own process, and take turns: while one works the other sleeps. So what
else the machine does in these minutes falls on both.

Served is `chatfleet worker`, whole: HTTP, template, tokenizer, engine process, text, SSE. In process is
openvino-genai alone: add_request, step, read, with the worker's SchedulerConfig. Both get 64 prompt tokens a
stream, all streams at once, and make 64 tokens each.

The client of the served side runs on the same cores. Its share of the CPU is in the table.

    python benchmarks/engines/served_vs_inprocess.py --json results.json
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from client import EXACT, ChatClient
from make_model import DEFAULT_MODEL_DIR, ensure_model
from rich.console import Console
from rich.table import Table

PROMPT_TOKENS = COMPLETION_TOKENS = 64
STREAMS = (1, 8, 16)
GOAL_THROUGHPUT, GOAL_FIRST_TOKEN_MS = 0.95, 10.0

stderr = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Scheduler:
    """The worker's SchedulerConfig, from the line that it logs."""

    kv_tokens: int
    max_running: int
    step_tokens: int


@dataclass(frozen=True)
class Round:
    """One batch of streams: completion tokens per second, median milliseconds to the first token, CPU seconds
    that the side's processes took and the client's share of the machine. CPU seconds tell what a side costs on
    a machine that is not idle, where the others are noise."""

    streams: int
    tokens_per_s: float
    first_token_ms: float
    cpu_s: float = 0.0
    client_cpu_share: float = 0.0


# --- in process: plain openvino-genai, in its own process ---


def serve_rounds_in_process(model: Path, scheduler: Scheduler) -> None:
    """Answer each line of standard input, a number of streams, with the Round as a line of JSON."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    settings = genai.SchedulerConfig()
    settings.num_kv_blocks = scheduler.kv_tokens // 32
    settings.max_num_batched_tokens = scheduler.step_tokens
    settings.max_num_seqs = scheduler.max_running
    settings.dynamic_split_fuse = True
    settings.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(str(model), settings, "CPU")
    random = np.random.default_rng()
    request_ids = count()

    def one_round(streams: int) -> Round:
        prompts = [random.integers(0, 31_000, (1, PROMPT_TOKENS), np.int64) for _ in range(streams)]
        config = genai.GenerationConfig()
        config.max_new_tokens = COMPLETION_TOKENS
        config.ignore_eos = True
        start = time.perf_counter()
        handles = [pipeline.add_request(next(request_ids), ov.Tensor(prompt), config) for prompt in prompts]
        first_s: dict[int, float] = {}
        tokens = 0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    tokens += sum(len(output.generated_ids) for output in handle.read().values())
                    first_s.setdefault(index, time.perf_counter() - start)
        took_s = time.perf_counter() - start
        assert tokens == streams * COMPLETION_TOKENS
        return Round(streams, tokens / took_s, 1000 * statistics.median(first_s.values()))

    for line in sys.stdin:
        print(json.dumps(asdict(one_round(int(line)))), flush=True)


class InProcess:
    """The pipeline in a process of its own."""

    def __init__(self, model_dir: Path, scheduler: Scheduler) -> None:
        command = [sys.executable, __file__, "--model-dir", str(model_dir)]
        command += ["--in-process-child", json.dumps(asdict(scheduler))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, streams: int) -> Round:
        assert self._process.stdin is not None and self._process.stdout is not None
        cpu_s = _cpu_s(self._process.pid)
        self._process.stdin.write(f"{streams}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the in-process side has died")
        return replace(Round(**json.loads(answer)), cpu_s=_cpu_s(self._process.pid) - cpu_s)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


# --- served: raw asyncio against a worker process ---


class Served:
    """`chatfleet worker` on a free port, in its own process."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, "-m", "chatfleet", "worker", str(model), "--engine", "openvino", "--port", "0"]
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, text=True)
        while (ready := self._ready()) is None:
            if self._process.poll() is not None:  # nothing to stop then
                raise RuntimeError(f"the worker does not start:\n{Path(self._log.name).read_text()}")
            time.sleep(0.1)
        self._client, self.scheduler = ready

    def _ready(self) -> tuple[ChatClient, Scheduler] | None:
        log = Path(self._log.name).read_text()
        serving = re.search(r"Serving ([^\s,]+).* on http://127\.0\.0\.1:(\d+)/v1", log)
        pool = re.search(r"KV pool (\d+) tokens, up to (\d+) requests and (\d+) tokens a step", log)
        if not serving or not pool:
            return None
        client = ChatClient(int(serving[2]), serving[1], EXACT)
        return client, Scheduler(*(int(number) for number in pool.groups()))

    def round(self, streams: int) -> Round:
        client_cpu_s, cpu_s = time.process_time(), _cpu_s(self._process.pid)
        answers = self._client.ask(streams, PROMPT_TOKENS, COMPLETION_TOKENS)
        client_cpu_s, cpu_s = time.process_time() - client_cpu_s, _cpu_s(self._process.pid) - cpu_s
        took_s = max(answer.done_s for answer in answers) - min(answer.sent_s for answer in answers)
        return Round(
            streams,
            streams * COMPLETION_TOKENS / took_s,
            1000 * statistics.median(answer.first_s - answer.sent_s for answer in answers),
            cpu_s,
            client_cpu_s / took_s / (os.cpu_count() or 1),
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)  # an interrupted round's requests get half a minute to finish in
        self._log.close()


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its descendants so far."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


# --- both, and the table ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each side; medians of these (default: 3)")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--in-process-child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = ensure_model(arguments.model_dir)
    if arguments.in_process_child:
        serve_rounds_in_process(model, Scheduler(**json.loads(arguments.in_process_child)))
        return

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the two processes end with this one
    rounds: dict[str, list[Round]] = {"served": [], "in_process": []}
    with ExitStack() as processes:
        served = Served(model)
        processes.callback(served.stop)
        in_process = InProcess(arguments.model_dir, served.scheduler)
        processes.callback(in_process.stop)
        for side in (served, in_process):
            side.round(2)  # the first rounds allocate
        for streams in STREAMS:
            for repeat in range(arguments.repeats):
                sides: list[tuple[str, Served | InProcess]] = [("served", served), ("in_process", in_process)]
                for name, side in sides if repeat % 2 == 0 else reversed(sides):
                    rounds[name].append(side.round(streams))
                    stderr.print(f"{name}: {rounds[name][-1]}", soft_wrap=True)
    rows = [_row(streams, rounds["served"], rounds["in_process"]) for streams in STREAMS]
    _print_table(rows, served.scheduler)
    if arguments.json:
        every = {name: [asdict(one) for one in of_side] for name, of_side in rounds.items()}
        results = {"scheduler": asdict(served.scheduler), "rows": rows, "rounds": every}
        arguments.json.write_text(json.dumps(results, indent=1))


def _row(streams: int, served: list[Round], in_process: list[Round]) -> dict[str, Any]:
    def median(rounds: list[Round], name: str) -> float:
        return statistics.median(getattr(one, name) for one in rounds if one.streams == streams)

    return {
        "streams": streams,
        "in_process_tokens_per_s": median(in_process, "tokens_per_s"),
        "served_tokens_per_s": median(served, "tokens_per_s"),
        "throughput_ratio": median(served, "tokens_per_s") / median(in_process, "tokens_per_s"),
        "in_process_first_token_ms": median(in_process, "first_token_ms"),
        "served_first_token_ms": median(served, "first_token_ms"),
        "first_token_difference_ms": median(served, "first_token_ms") - median(in_process, "first_token_ms"),
        "in_process_cpu_s": median(in_process, "cpu_s"),
        "served_cpu_s": median(served, "cpu_s"),
        "client_cpu_share": median(served, "client_cpu_share"),
    }


def _print_table(rows: list[dict[str, Any]], scheduler: Scheduler) -> None:
    table = Table(title=f"{PROMPT_TOKENS} tokens in, {COMPLETION_TOKENS} out, {scheduler.step_tokens} tokens a step")
    for column in ("streams", "in process tok/s", "served tok/s", "ratio", "first token in process", "served"):
        table.add_column(column, justify="right")
    table.add_column("difference", justify="right")
    table.add_column("CPU s in process", justify="right")
    table.add_column("served", justify="right")
    table.add_column("client CPU", justify="right")
    table.add_column("goals")
    for row in rows:
        met = row["throughput_ratio"] >= GOAL_THROUGHPUT and row["first_token_difference_ms"] <= GOAL_FIRST_TOKEN_MS
        table.add_row(
            str(row["streams"]),
            f"{row['in_process_tokens_per_s']:.1f}",
            f"{row['served_tokens_per_s']:.1f}",
            f"{row['throughput_ratio']:.1%}",
            f"{row['in_process_first_token_ms']:.0f} ms",
            f"{row['served_first_token_ms']:.0f} ms",
            f"{row['first_token_difference_ms']:+.1f} ms",
            f"{row['in_process_cpu_s']:.2f}",
            f"{row['served_cpu_s']:.2f}",
            f"{row['client_cpu_share']:.2%}",
            "met" if met else "missed",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
