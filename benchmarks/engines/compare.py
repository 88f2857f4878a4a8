"""Every engine of ours and every peer at hand, measured the same way: over HTTP, by one cheap client, in one run.

All serve the same random weights: a GGUF file in F16 where a server reads that, else safetensors in bfloat16. Prompts
are random and never cached; every answer has exactly the tokens that were asked for, which its usage must confirm. All
targets are started and stay loaded (15 GB with the default model and all of them). Only one is asked at a time, when
all are quiet, and they take turns within each repetition, so that whatever else the machine does falls on all. Peers
that come from PyPI get environments of their own, made on the first run (4 GB) and kept.

The markdown goes to standard output, all else to standard error.

    python benchmarks/engines/compare.py --svg docs/engines.svg
    python benchmarks/engines/compare.py --targets 'chatfleet openvino,vLLM' --streams 1,4 --repeats 5
    python benchmarks/engines/compare.py --device cuda --model random-1.5b --streams 1,8,64,256
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from figures import Round, Workload, figures
from make_model import DEFAULT_MODEL_DIR, QWEN_0_4B, QWEN_1_5B, ModelShape
from report import Comparison, Started, streams_in_words
from rich.console import Console
from shared import CannotRun, at_least_one, cpu_model, run_to_the_end, some_of, usage
from targets import TARGETS, Place, Target, running

TINY: Final = ModelShape(
    name="random-tiny",
    vocab_size=4096,
    hidden_size=256,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn_size=512,
    context_length=4096,
)
SHAPES: Final = {shape.name: shape for shape in (QWEN_0_4B, QWEN_1_5B, TINY)}
CPU_TARGETS: Final = [name for name in TARGETS if name != "transformers serve, unbatched"]
GPU_TARGETS: Final = ["chatfleet transformers", "transformers serve"]
DEFAULT_ENV_DIR: Final = Path(tempfile.gettempdir()) / "chatfleet-benchmark-peers"
_QUIET_S, _QUIET_CPU_S, _QUIET_PATIENCE_S = 0.2, 0.02, 10.0

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def measure(workload: Workload, target: Target, targets: Sequence[Target]) -> Round:
    """One workload on one target. Raises CannotRun when the target fails."""
    _until_quiet(targets)
    before, client_cpu_s = usage([target.process.pid]), time.process_time()
    try:
        answers = target.client.ask(workload.streams, workload.prompt_tokens, workload.completion_tokens)
    except (RuntimeError, OSError, TimeoutError) as exc:
        target.process.require_alive()
        raise CannotRun(f"{target.name} fails at {workload.name}: {exc or 'it takes too long'}") from exc
    client_cpu_s, after = time.process_time() - client_cpu_s, usage([target.process.pid])
    return figures(
        workload,
        target.name,
        answers,
        cpu_s=after.cpu_s - before.cpu_s,
        client_cpu_s=client_cpu_s,
        rss_mb=after.rss_mb,
    )


def _until_quiet(targets: Sequence[Target]) -> None:
    """What one target does after its answer must not fall on the next; one that is never quiet is waited for 10 s."""
    deadline = time.monotonic() + _QUIET_PATIENCE_S
    pids = [target.process.pid for target in targets]
    cpu_s = usage(pids).cpu_s
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        before, cpu_s = cpu_s, usage(pids).cpu_s
        if cpu_s - before <= _QUIET_CPU_S:
            return


def run(workloads: Sequence[Workload], targets: Sequence[Target], repeats: int) -> Iterator[Round]:
    """Every round as it is made, after one of each that only warms up, with a line about it on standard error."""
    for target in targets:
        stderr.print(f"warming up {target.name}")
        for workload in workloads:
            measure(workload, target, targets)
    total, count = repeats * len(workloads) * len(targets), 0
    for repetition in range(repeats):
        for workload in workloads:
            for target in targets if repetition % 2 == 0 else reversed(targets):
                one = measure(workload, target, targets)
                count += 1
                stderr.print(f"{count}/{total} {workload.name}, {target.name}: {_in_short(workload, one)}")
                yield one


def _in_short(workload: Workload, one: Round) -> str:
    rate = one.prefill_tokens_per_s if workload.prefill else one.tokens_per_s
    return f"{rate:.1f} tokens/s, first token {one.first_token_ms:.0f} ms, {one.cpu_s:.1f} CPU s"


def compare(arguments: argparse.Namespace) -> None:
    """Start everything, measure, end everything, print. Raises CannotRun."""
    workloads = [
        Workload(streams_in_words(streams), streams, arguments.tokens_in, arguments.tokens_out)
        for streams in arguments.streams
    ]
    workloads.append(Workload("prefill", 1, arguments.prefill_tokens, 1, prefill=True))
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        place = Place(
            arguments.model_dir,
            arguments.env_dir,
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatfleet-bench-"))),
            SHAPES[arguments.model],
            arguments.device,
            max(arguments.streams),
            stderr,
        )
        targets: list[Target] = []
        for name in arguments.targets:
            try:
                targets.append(stack.enter_context(running(name, place)))
                stderr.print(f"{name} {targets[-1].version} is ready after {targets[-1].start_s:.1f} s")
            except CannotRun as exc:
                left_out[name] = str(exc)
                stderr.print(f"{name} is left out: {exc}", markup=False)
        if not targets:
            raise CannotRun("No target has started. What each one said is above.")
        rounds = list(run(workloads, targets, arguments.repeats))
    started = {
        target.name: Started(
            target.version, target.start_s, max(one.rss_mb for one in rounds if one.target == target.name)
        )
        for target in targets
    }
    about = _about(arguments, place.shape)
    comparison = Comparison(workloads, rounds, started, left_out)
    for grid in comparison.grids():
        stderr.print(grid.table())
    print(f"{_in_words(about, left_out)}\n\n{comparison.markdown()}")
    if arguments.json:
        arguments.json.write_text(json.dumps(comparison.to_json(about), indent=1))
    if arguments.svg:
        arguments.svg.write_text(comparison.plot())


def _about(arguments: argparse.Namespace, shape: ModelShape) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "device": arguments.device,
        "model": shape.name,
        "parameters": shape.parameters,
        "tokens_in": arguments.tokens_in,
        "tokens_out": arguments.tokens_out,
        "repeats": arguments.repeats,
    }


def _in_words(about: dict[str, Any], left_out: dict[str, str]) -> str:
    device = "" if about["device"] == "auto" else f", on {about['device']}"
    missing = f"; not measured, for they did not start: {', '.join(left_out)}" if left_out else ""
    return (
        f"{about['date']}, {about['cores']} cores of {about['cpu']}{device}, Linux {about['kernel']}, "
        f"Python {about['python']}; {about['parameters'] / 1e6:.0f}M random weights; {about['tokens_in']} tokens in, "
        f"{about['tokens_out']} out; medians of {about['repeats']}{missing}"
    )


def _stream_counts(text: str) -> list[int]:
    return sorted({at_least_one(number) for number in text.split(",")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=some_of([*TARGETS]), help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--streams", type=_stream_counts, default=[1, 8, 16], help="at once (default: 1,8,16)")
    parser.add_argument("--tokens-in", type=at_least_one, default=64, help="of every prompt (default: 64)")
    parser.add_argument("--tokens-out", type=at_least_one, default=64, help="of every answer (default: 64)")
    parser.add_argument("--prefill-tokens", type=at_least_one, default=512, help="of a long prompt (default: 512)")
    parser.add_argument("--repeats", type=at_least_one, default=3, help="medians of so many (default: 3)")
    parser.add_argument("--model", choices=SHAPES, default=QWEN_0_4B.name, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cuda, for one, which llama.cpp and vLLM then sit out")
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--env-dir", type=Path, default=DEFAULT_ENV_DIR, help="of peers (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the medians and every round here")
    parser.add_argument("--svg", type=Path, help="write a plot here")
    arguments = parser.parse_args()
    if arguments.targets is None:
        arguments.targets = CPU_TARGETS if arguments.device in ("auto", "cpu") else GPU_TARGETS
    run_to_the_end(compare, arguments)


if __name__ == "__main__":
    main()
