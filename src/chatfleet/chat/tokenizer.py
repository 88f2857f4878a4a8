"""Tokenizers as the worker needs them: text to ids, and ids to the exact bytes each stands for.

Text is assembled from the bytes of single tokens (chat/text.py), so streaming costs the same per token
at any length, and a character split over tokens is never shown in halves.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as RustTokenizer

from chatfleet.core.errors import ConfigurationError


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    eos_token_ids: frozenset[int]
    """The ids that end an answer."""
    strips_leading_space: bool
    """Whether the first token of a text loses its leading space (SentencePiece's convention)."""
    longest_token_chars: int
    """The most characters that one token stands for."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids. Special tokens written out in `text` become their ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for in text; empty for ids outside the vocabulary."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of the token that the vocabulary writes so, if there is one."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which never shows in text."""
        ...


@cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level BPE token; a character outside that alphabet stands for itself."""
    table = _byte_of_char()
    return b"".join(bytes([table[char]]) if char in table else char.encode() for char in token)


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token: `<0xNN>` is one byte, U+2581 a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library (a tokenizer.json, or built from GGUF metadata)."""

    def __init__(self, tokenizer: RustTokenizer, *, eos_token_ids: Sequence[int]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        added_text = {token_id: token.content for token_id, token in added.items()}
        decoder = repr(tokenizer.decoder)  # nested decoders are visible only here
        to_bytes = byte_level_bytes if "ByteLevel(" in decoder else sentencepiece_bytes
        self.strips_leading_space = "Strip(" in decoder or "Metaspace(" in decoder
        self._bytes = [b""] * (max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1)
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
            self._bytes[token_id] = added_text[token_id].encode() if token_id in added_text else to_bytes(token)
        self.longest_token_chars = max(map(len, self._bytes), default=1)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def offsets(self, text: str) -> list[int]:
        """Where each token of `text` begins in it, in characters, special tokens being added: for texts that the
        tokenizer changes before it reads them, so that the tokens' own texts do not tell."""
        begins: list[int] = []
        encoding = self._tokenizer.encode(text)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token_bytes = self.token_bytes(token_id)
            spaces = len(token_bytes) - len(token_bytes.lstrip(b" "))
            if spaces and (start == end or text[start] != " "):  # some leave out the spaces that a token begins with
                start = max(start - spaces, 0)
            begins.append(start)
        return begins

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


class ByteTokenizer:
    """One token per byte and three control tokens: what the simulated engine speaks."""

    SPECIAL = {256: "<|im_start|>", 257: "<|im_end|>", 258: "<|endoftext|>"}
    vocab_size = 259
    eos_token_ids = frozenset({257})
    strips_leading_space = False
    longest_token_chars = max(map(len, SPECIAL.values()))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        ids: list[int] = []
        start = 0
        while (at := data.find(b"<|", start)) >= 0:
            token_id, length = next(
                ((i, len(s)) for i, s in self.SPECIAL.items() if data.startswith(s.encode(), at)), (-1, 2)
            )
            ids += data[start:at] if token_id >= 0 else data[start : at + length]
            if token_id >= 0:
                ids.append(token_id)
            start = at + length
        return [*ids, *data[start:]]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.SPECIAL:
            return self.SPECIAL[token_id].encode()
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def token_id(self, token: str) -> int | None:
        return next((token_id for token_id, text in self.SPECIAL.items() if text == token), None)

    def is_special(self, token_id: int) -> bool:
        return token_id in self.SPECIAL


def load_tokenizer_json(path: Path, *, eos_token_ids: Sequence[int]) -> HuggingFaceTokenizer:
    """A tokenizer from a tokenizer.json. Raises ConfigurationError when it cannot be read."""
    try:
        tokenizer = RustTokenizer.from_file(str(path))
    except Exception as exc:  # the library raises bare Exception
        raise ConfigurationError(f"The tokenizer {path} cannot be read: {exc}. Fetch the model's files again.") from exc
    return HuggingFaceTokenizer(tokenizer, eos_token_ids=eos_token_ids)
