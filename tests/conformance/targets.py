"""The engines that the suite runs over. Another one joins by a line in `TARGETS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.tokenizer import ByteTokenizer, Tokenizer
from chatfleet.engines.base import EngineConfig
from chatfleet.engines.simulated import KV_BYTES_PER_TOKEN
from chatfleet.worker.model_source import bundled_model_path
from support.models import write_ir, write_safetensors

CONTEXT_LENGTH = 1024
"""Of every target: the bundled model's."""

BUNDLED_KV_BYTES_PER_TOKEN = 2 * 6 * 2 * 64 * 2
"""Keys and values x layers x KV heads x head size x bytes."""


@dataclass(frozen=True)
class Target:
    """An engine on a model. `make_model` writes the model to a path of its choice below a folder; None is no model.
    Only the cases of the files `core` are in the short suite; None is all. That is for engines that are there already,
    on another form of model."""

    name: str
    engine: str
    make_model: Callable[[Path], Path] | None = None
    core: tuple[str, ...] | None = None
    served_with: tuple[str, ...] = ("--deterministic",)
    """What makes a worker's answers repeat when they are generated one at a time."""

    @property
    def kv_token_bytes(self) -> int:
        """What a token takes of the KV cache, in 16-bit values where there is a model."""
        return KV_BYTES_PER_TOKEN if self.make_model is None else BUNDLED_KV_BYTES_PER_TOKEN

    def tokenizer(self) -> Tokenizer:
        return ByteTokenizer() if self.make_model is None else read_gguf(bundled_model_path()).tokenizer()


@dataclass(frozen=True)
class Loadable:
    """A target whose model has been made."""

    target: Target
    model: Path | None

    def config(self, **changes: Any) -> EngineConfig:
        """For the engine itself. Every case but those about load is about exact answers."""
        path = None if self.model is None else str(self.model)
        fields = {"deterministic": True, "context_length": CONTEXT_LENGTH, "kv_cache_gb": 0.4} | changes
        return EngineConfig(engine=self.target.engine, model_path=path, **fields)

    def arguments(self) -> list[str]:
        """For `chatfleet worker`."""
        model = [] if self.model is None else [str(self.model)]
        fixed = ["--model-name", "model", "--context-length", str(CONTEXT_LENGTH), "--kv-cache-gb", "0.4"]
        return [*model, "--engine", self.target.engine, *self.target.served_with, *fixed]


def chat_prompt(question: str) -> str:
    """What every target's chat template makes of a question."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def _bundled(folder: Path) -> Path:
    return bundled_model_path()


TARGETS = [
    Target("simulated", "simulated"),
    Target("openvino GGUF", "openvino", _bundled),
    Target("openvino IR", "openvino", lambda folder: write_ir(folder / "ir"), core=()),
    Target(
        "transformers safetensors",
        "transformers",
        lambda folder: write_safetensors(folder / "safetensors"),
        core=("test_answers.py", "test_failures.py", "test_sampling.py"),
        served_with=("--dtype", "float32"),
    ),
    Target("transformers GGUF", "transformers", _bundled, core=(), served_with=("--dtype", "float32")),
]
