"""A random-weight model in a GGUF file, of the shape that the engine benchmarks and tests need.

The file is complete: Qwen2 layers in F16, a byte-level BPE vocabulary with its merges and a chat template,
so everything that serves a real GGUF serves it. What it says is noise, at the speed of a real model.

    python benchmarks/engines/make_model.py --model-dir /tmp/models
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DEFAULT_MODEL_DIR = Path(tempfile.gettempdir()) / "chatfleet-benchmark-models"


@dataclass(frozen=True)
class ModelShape:
    """A Qwen2 architecture with tied embeddings. `seed` draws the weights."""

    name: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    ffn_size: int
    context_length: int
    weight_scale: float = 0.02
    seed: int = 0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(size)) for _, size, _ in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """(name, size in numpy order, kind) of every tensor; kind is matrix, bias or norm."""
        hidden, kv = self.hidden_size, self.kv_heads * self.head_size
        yield "token_embd.weight", (self.vocab_size, hidden), "matrix"
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm.weight", (hidden,), "norm"
            for projection, size in (("q", hidden), ("k", kv), ("v", kv)):
                yield f"blk.{layer}.attn_{projection}.weight", (size, hidden), "matrix"
                yield f"blk.{layer}.attn_{projection}.bias", (size,), "bias"
            yield f"blk.{layer}.attn_output.weight", (hidden, hidden), "matrix"
            yield f"blk.{layer}.ffn_norm.weight", (hidden,), "norm"
            yield f"blk.{layer}.ffn_gate.weight", (self.ffn_size, hidden), "matrix"
            yield f"blk.{layer}.ffn_up.weight", (self.ffn_size, hidden), "matrix"
            yield f"blk.{layer}.ffn_down.weight", (hidden, self.ffn_size), "matrix"
        yield "output_norm.weight", (hidden,), "norm"


QWEN_0_4B = ModelShape(
    name="random-0.4b",
    vocab_size=32_000,
    hidden_size=896,
    layers=24,
    heads=14,
    kv_heads=2,
    ffn_size=4864,
    context_length=4096,
)
"""386M parameters: Qwen2.5-0.5B with a vocabulary of 32 000."""


def byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE, in the order of the bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary(vocab_size: int) -> tuple[list[str], list[str]]:
    """(tokens, merges) of `vocab_size` tokens, specials last.

    Merges build every pair, then every triple and so on, over a space and the lower-case letters, each
    from a token before it: all are reachable, and they read as text.
    """
    characters = byte_characters()
    letters = [characters[ord(" ")], *"etaoinshrdlcumwfgypbvkjxqz"]
    tokens, merges = list(characters), list[str]()
    wanted = vocab_size - len(SPECIAL_TOKENS)
    if wanted < len(tokens):
        raise ValueError(f"a byte-level vocabulary has at least {len(tokens) + len(SPECIAL_TOKENS)} tokens")
    stems = letters
    while len(tokens) < wanted:
        longer = [(stem, letter) for stem in stems for letter in letters[1:]][: wanted - len(tokens)]
        merges += [f"{stem} {letter}" for stem, letter in longer]
        stems = [stem + letter for stem, letter in longer]
        tokens += stems
    return [*tokens, *SPECIAL_TOKENS], merges


def write_model(
    path: Path,
    shape: ModelShape,
    *,
    dtype: GGMLQuantizationType = GGMLQuantizationType.F16,
    eos_token_id: int | None = None,
    tokenizer: bool = True,
    on_tensor: Callable[[int], None] = lambda parameters: None,
) -> Path:
    """Write the model to `path`, whole or not at all. `dtype` (F32, F16, BF16, Q8_0 or Q4_0) is that of the matrices.

    The end-of-sequence token is <|im_end|> unless `eos_token_id` says another; without `tokenizer` the file has
    none. `on_tensor` is called with the number of parameters of each tensor once it is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    writer = GGUFWriter(partial, "qwen2")
    writer.add_name(shape.name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if tokenizer:
        _add_tokenizer(writer, shape.vocab_size, eos_token_id)

    random = np.random.default_rng(shape.seed)
    for name, size, kind in shape.tensors():
        _add_tensor(writer, name, _weights(random, size, kind, shape.weight_scale), dtype if kind == "matrix" else None)
        on_tensor(int(np.prod(size)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path


_FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}


def _add_tokenizer(writer: GGUFWriter, vocab_size: int, eos_token_id: int | None) -> None:
    tokens, merges = vocabulary(vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    plain = len(tokens) - len(SPECIAL_TOKENS)
    writer.add_token_types([TokenType.NORMAL] * plain + [TokenType.CONTROL] * len(SPECIAL_TOKENS))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>") if eos_token_id is None else eos_token_id)
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _weights(random: np.random.Generator, size: tuple[int, ...], kind: str, scale: float) -> np.ndarray:
    if kind == "norm":
        return np.ones(size, np.float32)
    return random.standard_normal(size, np.float32) * np.float32(scale)


def _add_tensor(writer: GGUFWriter, name: str, weights: np.ndarray, dtype: GGMLQuantizationType | None) -> None:
    if dtype is None:
        writer.add_tensor(name, weights)
    else:
        writer.add_tensor(name, quants.quantize(weights, dtype), raw_dtype=dtype)


def ensure_model(model_dir: Path, shape: ModelShape = QWEN_0_4B) -> Path:
    """The model's path under `model_dir`, made on the first call with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    path = model_dir / f"{shape.name}-f16-seed{shape.seed}.gguf"
    if path.exists():
        return path
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"{path.name}: {shape.parameters / 1e6:.0f}M parameters", total=shape.parameters)
        return write_model(path, shape, on_tensor=lambda made: progress.advance(task, made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    print(ensure_model(parser.parse_args().model_dir))


if __name__ == "__main__":
    main()
