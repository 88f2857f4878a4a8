"""What speculative decoding gains where it can, and what it costs where it cannot.

The OpenVINO backend, driven in process, on a random 0.4B model of which the layers beyond the first few add nothing:
a draft of those first layers says the same at a fraction of the work. Greedily, such a model repeats itself, so that
prompt lookup finds what comes next too. Drawn with temperature 1, its tokens are nearly all alike in probability, and
nothing that is proposed is accepted.

    python benchmarks/engines/speculative.py
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from make_model import DEFAULT_MODEL_DIR, QWEN_0_4B, write_model
from rich.console import Console
from rich.table import Table

from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams
from chatfleet.engines.openvino.backend import OpenVINOBackend

DRAFT_LAYERS = 2
STREAMS = (1, 4)
PROMPT_TOKENS = 64

stderr = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Measured:
    """`accepted` is the share of the proposed tokens that were accepted."""

    tokens_per_s: float
    accepted: float


def ensure_models(folder: Path) -> tuple[Path, Path]:
    """(model, draft), made on the first call."""
    model, draft = folder / "shallow-0.4b.gguf", folder / f"shallow-0.4b-draft-{DRAFT_LAYERS}.gguf"
    if not draft.exists():
        stderr.print(f"making {draft}")
        write_model(draft, replace(QWEN_0_4B, name="shallow-draft", layers=DRAFT_LAYERS))
    if not model.exists():
        stderr.print(f"making {model}")
        made = write_model(model.with_suffix(".making"), replace(QWEN_0_4B, name="shallow"))
        _empty_layers(made, DRAFT_LAYERS)
        made.rename(model)
    return model, draft


def _empty_layers(path: Path, first: int) -> None:
    """Set what the layers from `first` on add to the residual stream to zero."""
    for tensor in GGUFReader(path, "r+").tensors:
        match tensor.name.split("."):
            case ["blk", layer, "attn_output" | "ffn_down", "weight"] if int(layer) >= first:
                tensor.data[:] = 0


class Runner:
    """Requests on one backend, to their end."""

    def __init__(self, model: Path, **how: Any) -> None:
        self._proposed = how.get("num_assistant_tokens", 0)
        config = EngineConfig(engine="openvino", model_path=str(model), context_length=1024, kv_cache_gb=1.0, **how)
        self._backend = OpenVINOBackend(config)
        self._ids = count(1)
        self._prompts = np.random.default_rng(0)

    def measure(self, streams: int, *, temperature: float, tokens: int) -> Measured:
        requests = [
            GenerateRequest(
                request_id=next(self._ids),
                prompt_token_ids=self._prompts.integers(0, 30_000, PROMPT_TOKENS).tolist(),
                sampling=SamplingParams(max_tokens=tokens, temperature=temperature, seed=stream),
            )
            for stream in range(streams)
        ]
        for request in requests:
            self._backend.add(request)
        sizes: list[int] = []
        begun: set[int] = set()
        started = 0.0
        while self._backend.next_step_s() is not None:
            for delta in self._backend.step():
                if delta.fault is not None:
                    raise RuntimeError(delta.fault.message)
                if started:
                    sizes.append(len(delta.token_ids))
                begun.add(delta.request_id)
            if not started and len(begun) == streams:
                started = time.perf_counter()  # prompts are read: from here on it is decoding
        accepted = (sum(sizes) - len(sizes)) / (len(sizes) * self._proposed) if self._proposed else 0.0
        return Measured(sum(sizes) / (time.perf_counter() - started), accepted)

    def close(self) -> None:
        self._backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=48, help="of every answer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="the best counts (default: %(default)s)")
    parser.add_argument("--proposed", type=int, default=4, help="tokens at a time (default: %(default)s)")
    arguments = parser.parse_args()
    model, draft = ensure_models(arguments.model_dir)
    ways: dict[str, dict[str, Any]] = {
        "off": {},
        "draft model": {"draft_model_path": str(draft), "num_assistant_tokens": arguments.proposed},
        "prompt lookup": {"prompt_lookup": True, "num_assistant_tokens": arguments.proposed},
    }
    texts = {"greedy, as proposed": 0.0, "drawn, never as proposed": 1.0}
    best: dict[tuple[str, str, int], Measured] = {}
    for way, how in ways.items():
        stderr.print(f"{way}: loading")
        runner = Runner(model, **how)
        for text, temperature in texts.items():
            for streams in STREAMS:
                rounds = [
                    runner.measure(streams, temperature=temperature, tokens=arguments.tokens)
                    for _ in range(arguments.repeats)
                ]
                best[way, text, streams] = max(rounds, key=lambda measured: measured.tokens_per_s)
        runner.close()
    table = Table(title=f"Decoding, tokens/s; {arguments.proposed} tokens proposed; best of {arguments.repeats}")
    for heading in ("text", "speculation", *(f"{streams} stream{'s' * (streams > 1)}" for streams in STREAMS)):
        table.add_column(heading, justify="left" if heading in ("text", "speculation") else "right")
    table.add_column("accepted", justify="right")
    for text in texts:
        for way in ways:
            row = [best[way, text, streams] for streams in STREAMS]
            off = [best["off", text, streams].tokens_per_s for streams in STREAMS]
            cells = [
                f"{measured.tokens_per_s:.0f} ({measured.tokens_per_s / alone:.2f}x)"
                for measured, alone in zip(row, off, strict=True)
            ]
            table.add_row(text, way, *cells, "" if way == "off" else f"{row[0].accepted:.0%}")
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
