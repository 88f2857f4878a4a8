"""How often a greedy answer differs with its circumstances, and what it costs that it never does.

Each question is answered by the OpenVINO backend, driven in process: alone, among neighbours that run in the same
batch, and in two parts, as if another worker had begun it: up to a random token, and then on by a second request that
is given those tokens. Answers are compared with the one given alone. All of it at default precision and in
deterministic mode (`--deterministic`), where no answer may differ; then the tokens per second of both.

    python benchmarks/engines/determinism.py
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from make_model import DEFAULT_MODEL_DIR, ensure_model
from rich.console import Console
from rich.table import Table

from chatfleet.chat.gguf import read_gguf
from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams
from chatfleet.engines.openvino.backend import OpenVINOBackend
from chatfleet.worker.model_source import bundled_model_path

NEIGHBOURS = 16
STREAMS = (1, 8)
WORDS = (
    *("lighthouse", "sea", "seven", "old", "ships", "people", "who", "waited", "for", "rain", "and", "how", "many"),
    *("of", "them", "went", "home", "before", "the", "winter", "came", "over", "hills", "with", "its", "long", "quiet"),
)

stderr = Console(stderr=True, highlight=False)


class Runner:
    """Requests on one backend, to their end."""

    def __init__(self, model: Path, *, deterministic: bool) -> None:
        config = EngineConfig(engine="openvino", model_path=str(model), deterministic=deterministic)
        self._backend = OpenVINOBackend(config)
        self._ids = count(1)

    def answers(self, prompts: Sequence[list[int]], begun: Sequence[list[int]] = (), *, tokens: int) -> list[list[int]]:
        """The new tokens of each prompt's answer, all run together."""
        requests = [
            GenerateRequest(
                request_id=next(self._ids),
                prompt_token_ids=prompt,
                sampling=SamplingParams(max_tokens=tokens, temperature=0.0),
                output_token_ids=begun[index] if begun else [],
            )
            for index, prompt in enumerate(prompts)
        ]
        said: dict[int, list[int]] = {request.request_id: [] for request in requests}
        for request in requests:
            self._backend.add(request)
        while self._backend.next_step_s() is not None:
            for delta in self._backend.step():
                if delta.fault is not None:
                    raise RuntimeError(delta.fault.message)
                said[delta.request_id] += delta.token_ids
        return list(said.values())

    def close(self) -> None:
        self._backend.close()


def questions(model: Path, number: int) -> list[list[int]]:
    """Prompts of 12 to 60 tokens or so, each different, always the same."""
    tokenizer = read_gguf(model).tokenizer()
    draw = random.Random(7)
    texts = (" ".join(draw.choices(WORDS, k=draw.randint(8, 40))) for _ in range(number))
    return [
        tokenizer.encode(f"<|im_start|>user\n{text}?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
        for text in texts
    ]


def differing(
    runner: Runner, prompts: Sequence[list[int]], neighbours: Sequence[list[int]], *, tokens: int
) -> tuple[float, float]:
    """The fractions of answers that differ from the ones given alone: among neighbours, and in two parts."""
    draw = random.Random(8)
    batched = resumed = 0
    for prompt in prompts:
        (alone,) = runner.answers([prompt], tokens=tokens)
        batched += runner.answers([prompt, *neighbours], tokens=tokens)[0] != alone
        cut = draw.randrange(1, tokens)
        (rest,) = runner.answers([prompt], [alone[:cut]], tokens=tokens)
        resumed += alone[:cut] + rest != alone
    stderr.print(f"  of {len(prompts)}: {batched} among neighbours and {resumed} resumed differ")
    return batched / len(prompts), resumed / len(prompts)


def tokens_per_s(runner: Runner, prompts: Sequence[list[int]], *, first_token: int, tokens: int) -> float:
    """Of one round; `first_token` makes its prompts new to the prefix cache."""
    started = time.perf_counter()
    said = runner.answers([[first_token, *prompt] for prompt in prompts], tokens=tokens)
    return sum(map(len, said)) / (time.perf_counter() - started)


def compare(name: str, path: Path, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows of one model. The modes take turns in the rounds for the speed, whose best counts: what else the machine
    does only ever takes away."""
    prompts = questions(path, NEIGHBOURS + arguments.questions)
    neighbours, asked = prompts[:NEIGHBOURS], prompts[NEIGHBOURS:]
    runners = {"default": Runner(path, deterministic=False), "deterministic": Runner(path, deterministic=True)}
    best = {(mode, streams): 0.0 for mode in runners for streams in STREAMS}
    for round_number in range(arguments.repeats):
        for mode, streams in best:
            stderr.print(f"{name}: round {round_number + 1} of {arguments.repeats}, {mode}, {streams} streams")
            speed = tokens_per_s(
                runners[mode], neighbours[:streams], first_token=round_number + 1, tokens=arguments.tokens
            )
            best[mode, streams] = max(best[mode, streams], speed)
    rows = []
    for mode, runner in runners.items():
        stderr.print(f"{name}: answers, {mode}")
        batched, resumed = differing(runner, asked, neighbours, tokens=arguments.tokens)
        speeds = (f"{best[mode, streams]:.0f}" for streams in STREAMS)
        rows.append((name, mode, f"{batched:.1%}", f"{resumed:.1%}", *speeds))
        runner.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=48, help="of every answer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds for the speed (default: %(default)s)")
    parser.add_argument("--only", choices=("bundled", "random"), help="one of the models (default: both)")
    arguments = parser.parse_args()
    models: dict[str, Path] = {}
    if arguments.only != "random":
        models["bundled, 11M"] = bundled_model_path()
    if arguments.only != "bundled":
        models["random, 0.4B"] = ensure_model(arguments.model_dir)
    table = Table(
        title=f"{arguments.questions} greedy answers of {arguments.tokens} tokens; best of {arguments.repeats}"
    )
    for heading in ("model", "mode", f"differ among {NEIGHBOURS} others", "differ when resumed"):
        table.add_column(heading, justify="left" if heading in ("model", "mode") else "right")
    for streams in STREAMS:
        table.add_column(f"tokens/s, {streams} stream{'s' * (streams > 1)}", justify="right")
    for name, path in models.items():
        for row in compare(name, path, arguments):
            table.add_row(*row)
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
