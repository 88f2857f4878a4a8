"""What a grammar costs while answers are generated: eight streams that are held to one against eight that are not.

Backends driven in process on a random 0.4B model with 32,000 tokens, drawn with temperature 1. The grammars are of
JSON schemas that no answer comes to the end of, so that all streams generate the same number of tokens; with and
without take turns, and the median of the rounds counts. Compiling is done before and is not in the rates: it has a
column of its own.

    python benchmarks/engines/structured.py
"""

import argparse
import statistics
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from make_model import DEFAULT_MODEL_DIR, ensure_model, ensure_safetensors
from rich.console import Console
from rich.table import Table

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.grammar import from_json_schema, to_ebnf, to_lark
from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams
from chatfleet.engines.registry import backend_path, create_backend

STREAMS = 8
PROMPT_TOKENS = 64


def _array_of(**properties: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 1000}


SCHEMAS = {
    "free strings": _array_of(name={"type": "string"}, size={"type": "integer"}),
    "short strings": _array_of(name={"type": "string", "maxLength": 20}, tags=_array_of(tag={"type": "string"})),
    "choices and numbers": _array_of(
        kind={"enum": ["red", "green", "blue"]}, size={"type": "integer"}, weight={"type": "number"}
    ),
}

stderr = Console(stderr=True, highlight=False)


class Runner:
    """Requests on one backend, to their end."""

    def __init__(self, engine: str, model: Path, token_bytes: list[bytes]) -> None:
        config = EngineConfig(
            engine=engine,
            model_path=str(model),
            device="cpu",
            context_length=1024,
            kv_cache_gb=1.0,
            token_bytes=token_bytes,
        )
        self._backend = create_backend(backend_path(engine), config)
        self._printed = to_lark if self._backend.capabilities.grammar_syntax == "lark" else to_ebnf
        self._ids = count(1)
        self._prompts = np.random.default_rng(0)

    def grammar(self, schema: dict[str, Any]) -> str:
        return self._printed(from_json_schema(schema, param="response_format"))

    def first_token_s(self, grammar: str) -> float:
        """Until an idle engine has generated a request's first token: with a new grammar most of it is compiling."""
        started = time.perf_counter()
        self._run([self._request(grammar, tokens=1)])
        return time.perf_counter() - started

    def tokens_per_s(self, grammar: str | None, *, tokens: int) -> float:
        """Of all streams together, from when each has its first token on."""
        return self._run([self._request(grammar, tokens=tokens) for _ in range(STREAMS)])

    def _request(self, grammar: str | None, *, tokens: int) -> GenerateRequest:
        request_id = next(self._ids)
        return GenerateRequest(
            request_id=request_id,
            prompt_token_ids=self._prompts.integers(0, 30_000, PROMPT_TOKENS).tolist(),
            sampling=SamplingParams(max_tokens=tokens, temperature=1.0, seed=request_id, grammar=grammar),
        )

    def _run(self, requests: list[GenerateRequest]) -> float:
        for request in requests:
            self._backend.add(request)
        begun: set[int] = set()
        started, generated = 0.0, 0
        while (wait_s := self._backend.next_step_s()) is not None:
            time.sleep(wait_s)
            for delta in self._backend.step():
                if delta.fault is not None or delta.finish_reason == "stop":
                    raise RuntimeError(delta.fault.message if delta.fault else "an answer came to its end")
                if started:
                    generated += len(delta.token_ids)
                begun.add(delta.request_id)
            if not started and len(begun) == len(requests):
                started = time.perf_counter()
        return generated / (time.perf_counter() - started)

    def close(self) -> None:
        self._backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--engines", nargs="+", default=["openvino", "transformers"], help="default: both")
    parser.add_argument("--tokens", type=int, default=96, help="of every answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default: %(default)s)")
    arguments = parser.parse_args()
    gguf = ensure_model(arguments.model_dir)
    tokenizer = read_gguf(gguf).tokenizer()
    token_bytes = [b"" if tokenizer.is_special(i) else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    table = Table(title=f"Decoding, tokens/s of {STREAMS} streams; median of {arguments.rounds}")
    for heading in ("engine", "grammar", "without", "with", "share", "first compiled in"):
        table.add_column(heading, justify="left" if heading in ("engine", "grammar") else "right")
    for engine in arguments.engines:
        stderr.print(f"{engine}: loading")
        runner = Runner(engine, gguf if engine == "openvino" else ensure_safetensors(arguments.model_dir), token_bytes)
        for name, schema in SCHEMAS.items():
            grammar = runner.grammar(schema)
            compiling_s = runner.first_token_s(grammar)
            rounds = [
                [runner.tokens_per_s(kind, tokens=arguments.tokens) for kind in (None, grammar)]
                for _ in range(arguments.rounds)
            ]
            without, held = (statistics.median(rates) for rates in zip(*rounds, strict=True))
            stderr.print(f"{engine}: {name}: {without:.0f} {held:.0f}")
            table.add_row(
                engine, name, f"{without:.0f}", f"{held:.0f}", f"{held / without:.0%}", f"{compiling_s * 1e3:.0f} ms"
            )
        runner.close()
    Console(file=sys.stdout, width=120).print(table)


if __name__ == "__main__":
    main()
