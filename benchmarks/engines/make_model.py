"""A random-weight model of the shape that the engine benchmarks and tests need: a GGUF file, or a safetensors folder.

Both are complete: Qwen2 layers, a byte-level BPE vocabulary with its merges and a chat template, so everything that
serves a real model serves it. What it says is noise, at the speed of a real model. The weights of a shape are drawn
once and for all by its seed: a file and a folder hold the same, each rounded to its dtype.

    python benchmarks/engines/make_model.py --model-dir /tmp/models --safetensors
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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

QWEN_1_5B = ModelShape(
    name="random-1.5b",
    vocab_size=32_000,
    hidden_size=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    ffn_size=8960,
    context_length=4096,
)
"""1359M parameters: Qwen2.5-1.5B with a vocabulary of 32 000."""

Dtype = Literal["float32", "float16", "bfloat16"]


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

    for name, kind, weights in drawn_weights(shape):
        _add_tensor(writer, name, weights, dtype if kind == "matrix" else None)
        on_tensor(weights.size)
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


def drawn_weights(shape: ModelShape) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, kind, weights in float32) of every tensor, always the same for one shape."""
    random = np.random.default_rng(shape.seed)
    for name, size, kind in shape.tensors():
        if kind == "norm":
            yield name, kind, np.ones(size, np.float32)
        else:
            yield name, kind, random.standard_normal(size, np.float32) * np.float32(shape.weight_scale)


def _add_tensor(writer: GGUFWriter, name: str, weights: np.ndarray, dtype: GGMLQuantizationType | None) -> None:
    if dtype is None:
        writer.add_tensor(name, weights)
    else:
        writer.add_tensor(name, quants.quantize(weights, dtype), raw_dtype=dtype)


def write_safetensors(
    folder: Path,
    shape: ModelShape,
    *,
    dtype: Dtype = "bfloat16",
    on_tensor: Callable[[int], None] = lambda parameters: None,
) -> Path:
    """Write the model as a Hugging Face folder, whole or not at all: config, weights, tokenizer, chat template.

    All tensors are of `dtype`. The end-of-sequence token is <|im_end|>. `on_tensor` is called with the number of
    parameters of each tensor once it is written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, content in _huggingface_files(shape, dtype).items():
        (partial / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    _write_tensors(partial / "model.safetensors", shape, dtype, on_tensor)
    partial.rename(folder)
    return folder


def _write_tensors(path: Path, shape: ModelShape, dtype: Dtype, on_tensor: Callable[[int], None]) -> None:
    """The safetensors format by hand, a tensor at a time: numpy has no bfloat16, and 1.5B in float32 is 6 GB."""
    name_in_file, item_bytes = _SAFETENSORS_DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size, _ in shape.tensors():
        start, end = end, end + int(np.prod(size)) * item_bytes
        header[huggingface_name(name)] = {"dtype": name_in_file, "shape": size, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, _, weights in drawn_weights(shape):
            file.write(_encoded(weights, dtype))
            on_tensor(weights.size)


_SAFETENSORS_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def _encoded(weights: np.ndarray, dtype: Dtype) -> bytes:
    if dtype == "bfloat16":
        return quants.quantize(weights, GGMLQuantizationType.BF16).tobytes()
    return weights.astype(dtype).tobytes()


_HUGGINGFACE_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def huggingface_name(gguf_name: str) -> str:
    """What transformers calls a tensor of a GGUF file."""
    match gguf_name.split("."):
        case ["blk", layer, part, kind]:
            return f"model.layers.{layer}.{_HUGGINGFACE_PARTS[part]}.{kind}"
        case ["token_embd", kind]:
            return f"model.embed_tokens.{kind}"
        case ["output_norm", kind]:
            return f"model.norm.{kind}"
    raise ValueError(f"no Qwen2 tensor is called {gguf_name}")


def _huggingface_files(shape: ModelShape, dtype: Dtype) -> dict[str, dict[str, Any]]:
    tokens, merges = vocabulary(shape.vocab_size)
    special_ids = {token: tokens.index(token) for token in SPECIAL_TOKENS}
    end_ids = {"eos_token_id": special_ids["<|im_end|>"], "pad_token_id": special_ids["<|endoftext|>"]}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        **end_ids,
    }
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, **end_ids},
        "tokenizer.json": _tokenizer(tokens, merges, special_ids),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": shape.context_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }


def _tokenizer(tokens: list[str], merges: list[str], special_ids: dict[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json."""
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": token, **added} for token, token_id in special_ids.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def ensure_model(model_dir: Path, shape: ModelShape = QWEN_0_4B) -> Path:
    """The path of its GGUF file (F16) under `model_dir`, made on the first call with a progress bar on stderr."""
    path = model_dir / f"{shape.name}-f16-seed{shape.seed}.gguf"
    return path if path.exists() else _with_progress(write_model, path, shape)


def ensure_safetensors(model_dir: Path, shape: ModelShape = QWEN_0_4B) -> Path:
    """The folder of its safetensors form (bfloat16) under `model_dir`, made on the first call with a progress bar on
    stderr."""
    folder = model_dir / f"{shape.name}-bf16-seed{shape.seed}"
    return folder if folder.exists() else _with_progress(write_safetensors, folder, shape)


def _with_progress(write: Callable[..., Path], path: Path, shape: ModelShape) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(f"{path.name}: {shape.parameters / 1e6:.0f}M parameters", total=shape.parameters)
        return write(path, shape, on_tensor=lambda made: progress.advance(task, made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, default=DEFAULT_MODEL_DIR, help="default: %(default)s")
    parser.add_argument("--safetensors", action="store_true", help="make the folder, not the GGUF file")
    arguments = parser.parse_args()
    ensure = ensure_safetensors if arguments.safetensors else ensure_model
    print(ensure(arguments.model_dir))


if __name__ == "__main__":
    main()
