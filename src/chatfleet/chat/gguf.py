"""What a GGUF file says of its tokenizer and template. Source: the GGUF specification (ggml, docs/gguf.md)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from chatfleet.chat.tokenizer import HuggingFaceTokenizer
from chatfleet.core.errors import ConfigurationError

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

# How each family splits text into words before merging; the names are GGUF's `tokenizer.ggml.pre`.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": r"\p{N}|" + _GPT2.replace(r" ?\p{N}+|", ""),
}


@dataclass(frozen=True, slots=True)
class GGUFMetadata:
    """The part of a file's key-value metadata that the worker uses."""

    path: Path
    chat_template: str | None
    fields: dict[str, Any]

    @property
    def tokenizer_kind(self) -> tuple[str, str]:
        """Model and split as GGUF names them, such as gpt2 and qwen2."""
        kind, split = self.fields.get("tokenizer.ggml.model", ""), self.fields.get("tokenizer.ggml.pre", "default")
        return str(kind), str(split)

    @property
    def has_known_tokenizer(self) -> bool:
        """Whether `tokenizer` can make it: byte-level BPE with a split that we know."""
        kind, split = self.tokenizer_kind
        return kind == "gpt2" and split in _SPLITS

    def tokenizer(self) -> HuggingFaceTokenizer:
        """The tokenizer built from the vocabulary in the file. Raises ConfigurationError unless it is a known one."""
        kind, split = self.tokenizer_kind
        if not self.has_known_tokenizer:
            raise ConfigurationError(
                f"The tokenizer of {self.path} (model {kind!r}, split {split!r}) is not one that a GGUF file is "
                f"enough for: byte-level BPE with one of {', '.join(sorted(_SPLITS))}. "
                "Serve the same model from a folder that has a tokenizer.json."
            )
        tokens: list[str] = self.fields["tokenizer.ggml.tokens"]
        types: list[int] = self.fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
        merges = [tuple(merge.split(" ", 1)) for merge in self.fields["tokenizer.ggml.merges"]]
        tokenizer = RustTokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(tokens[i], special=True, normalized=False) for i, t in enumerate(types) if t == _CONTROL]
        )
        tokenizer.add_tokens(
            [AddedToken(tokens[i], normalized=False) for i, t in enumerate(types) if t == _USER_DEFINED]
        )
        return HuggingFaceTokenizer(tokenizer, eos_token_ids=self.eos_token_ids)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end an answer."""
        names = ("eos_token_id", "eot_token_id", "eom_token_id")
        return [int(self.fields[key]) for n in names if (key := f"tokenizer.ggml.{n}") in self.fields]

    @property
    def bos_token(self) -> str | None:
        """The text of the beginning-of-sequence token, for templates that write it."""
        return self._token("bos_token_id")

    @property
    def eos_token(self) -> str | None:
        return self._token("eos_token_id")

    def _token(self, key: str) -> str | None:
        token_id = self.fields.get(f"tokenizer.ggml.{key}")
        tokens = self.fields.get("tokenizer.ggml.tokens", [])
        return tokens[token_id] if token_id is not None and token_id < len(tokens) else None


def read_gguf(path: Path) -> GGUFMetadata:
    """Read a file's metadata (no tensor is read). Raises ConfigurationError when it is not a GGUF file."""
    try:
        import gguf
    except ImportError as exc:
        raise ConfigurationError(
            "Reading a GGUF file needs the package gguf, which comes with an engine: pip install 'chatfleet[openvino]'."
        ) from exc
    try:
        reader = gguf.GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    except FileNotFoundError as exc:
        raise ConfigurationError(f"There is no file {path}. Check the path.") from exc
    except Exception as exc:  # the reader raises whatever a corrupt file makes numpy raise
        raise ConfigurationError(
            f"{path} is not a GGUF file that can be read ({exc}). Download or convert it again."
        ) from exc
    return GGUFMetadata(
        path=path,
        chat_template=fields.get("tokenizer.chat_template"),
        fields=fields,
    )
