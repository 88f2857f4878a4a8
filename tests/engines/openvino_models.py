"""Small random models for the OpenVINO tests, and what transformers computes with the same weights."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader

from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams, TokenDelta
from chatfleet.engines.openvino.backend import OpenVINOBackend
from support.model_writer import writer
from support.models import float32_values

TINY = writer.ModelShape(
    name="tiny",
    vocab_size=512,
    hidden_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn_size=128,
    context_length=1024,
    weight_scale=0.3,
)
"""Logits from about -8 to 8: the likeliest token has a probability around one half."""

FLAT = replace(TINY, name="flat", weight_scale=0.002)
"""Logits within 0.1 of zero, half of them negative: every token about as likely as the others."""


def write_ir(folder: Path, shape: Any, converted: Path) -> Path:
    """An IR folder as optimum-cli writes it, from the IR files in `converted`."""
    folder.mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_bytes((converted / name).read_bytes())
    config = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Reference:
    """A GGUF file's model in transformers, in float32."""

    def __init__(self, path: Path, shape: Any) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.ffn_size,
            max_position_embeddings=shape.context_length,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
        )
        self._model = Qwen2ForCausalLM(config).float().eval()
        state = {
            writer.huggingface_name(tensor.name): torch.from_numpy(float32_values(tensor))
            for tensor in GGUFReader(path).tensors
        }
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        self._model.load_state_dict(state)

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> np.ndarray:
        """Of the token after `token_ids`, by token id."""
        return np.asarray(self._model(torch.tensor([token_ids])).logits[0, -1])

    def log_probabilities(self, token_ids: list[int]) -> np.ndarray:
        logits = self.logits(token_ids)
        return logits - np.logaddexp.reduce(logits)

    @torch.no_grad()
    def embedding(self, token_ids: list[int]) -> np.ndarray:
        mean = np.asarray(self._model.model(torch.tensor([token_ids])).last_hidden_state[0].mean(0))
        return mean / np.linalg.norm(mean)

    def greedy(self, prompt_token_ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """(token ids, log probabilities) of the `count` likeliest tokens, each after those before it."""
        token_ids: list[int] = []
        logprobs: list[float] = []
        for _ in range(count):
            log_probabilities = self.log_probabilities(prompt_token_ids + token_ids)
            token_ids.append(int(log_probabilities.argmax()))
            logprobs.append(float(log_probabilities.max()))
        return token_ids, logprobs


class Driver:
    """Runs requests on a backend and keeps what each one got."""

    def __init__(self, backend: OpenVINOBackend) -> None:
        self.backend = backend
        self.deltas: dict[int, list[TokenDelta]] = {}
        self._ids = count(1)

    def add(self, prompt: list[int], begun: list[int] | None = None, **sampling: Any) -> int:
        request_id = next(self._ids)
        params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0} | sampling)
        request = GenerateRequest(
            request_id=request_id, prompt_token_ids=prompt, sampling=params, output_token_ids=begun or []
        )
        self.backend.add(request)
        self.deltas[request_id] = []
        return request_id

    def step(self) -> list[TokenDelta]:
        deltas = self.backend.step()
        for delta in deltas:
            self.deltas[delta.request_id].append(delta)
        return deltas

    def finish(self, most_steps: int = 5000) -> int:
        """Step until nothing is left to do; the number of steps."""
        for steps in range(most_steps):
            if self.backend.next_step_s() is None:
                return steps
            self.step()
        raise AssertionError(f"not done after {most_steps} steps")

    def tokens(self, request_id: int) -> list[int]:
        return [token_id for delta in self.deltas[request_id] for token_id in delta.token_ids]

    def end(self, request_id: int) -> str:
        last = self.deltas[request_id][-1]
        return last.fault.message if last.fault else str(last.finish_reason)

    def generate(self, prompt: list[int], begun: list[int] | None = None, **sampling: Any) -> list[int]:
        request_id = self.add(prompt, begun, **sampling)
        self.finish()
        return self.tokens(request_id)


def load(path: Path, **config: Any) -> Driver:
    return Driver(OpenVINOBackend(EngineConfig(engine="openvino", model_path=str(path), **config)))


def prompts(number: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 500, (number, length)).tolist()
