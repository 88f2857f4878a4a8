"""Tiny models with random weights, as transformers saves them, and a driver for the backend."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams, TokenDelta
from chatfleet.engines.transformers.backend import TransformersBackend

VOCAB_SIZE = 300
CONTEXT_LENGTH = 256


def save_model(folder: Path, model_type: str = "qwen2", **settings: Any) -> Path:
    """A model of that type with weights large enough that its greedy tokens vary."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = AutoConfig.for_model(model_type, **shape | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
    model.save_pretrained(folder)
    return folder


class Driver:
    """A backend with its requests: gives ids, steps, and collects deltas by request."""

    def __init__(self, path: Path, **config: Any) -> None:
        fields = {"device": "cpu", "dtype": "float32", "kv_cache_gb": 0.02, "max_concurrency": 32} | config
        self.backend = TransformersBackend(EngineConfig(engine="transformers", model_path=str(path), **fields))
        self.deltas: dict[int, list[TokenDelta]] = {}

    def add(self, prompt: list[int], output_token_ids: list[int] | None = None, **sampling: Any) -> int:
        """Queue a request, greedy unless told otherwise, and give its id."""
        request_id = len(self.deltas) + 1
        settings = SamplingParams(**{"max_tokens": 16, "temperature": 0.0} | sampling)
        self.deltas[request_id] = []
        self.backend.add(
            GenerateRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=settings,
                output_token_ids=output_token_ids or [],
            )
        )
        return request_id

    def step(self) -> None:
        for delta in self.backend.step():
            self.deltas[delta.request_id].append(delta)

    def finish(self) -> None:
        for _ in range(10_000):
            wait_s = self.backend.next_step_s()
            if wait_s is None:
                return
            time.sleep(wait_s)  # for a grammar that is compiled
            self.step()
        raise AssertionError("the requests do not come to an end")

    def tokens(self, request_id: int) -> list[int]:
        return [token_id for delta in self.deltas[request_id] for token_id in delta.token_ids]

    def answer(self, prompt: list[int], output_token_ids: list[int] | None = None, **sampling: Any) -> list[int]:
        """The tokens of a request that runs to its end, with whatever else is queued."""
        request_id = self.add(prompt, output_token_ids, **sampling)
        self.finish()
        return self.tokens(request_id)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(token_id) for token_id in torch.randint(0, VOCAB_SIZE, (length,), generator=generator)]
