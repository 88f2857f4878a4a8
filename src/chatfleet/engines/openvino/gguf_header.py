"""What a GGUF file says about itself, without its weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Own
code because the `gguf` package makes an object per vocabulary entry: seconds for a 150 000-token model.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ITEMS = 1 << 24
"""More keys, tensors or array items than any model has: such a count is garbage, not a model."""

_TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
"""ggml type id -> (name, elements per block, bytes per block)."""


class NotGGUF(ValueError):
    """The bytes are not a whole GGUF file; the message says where they stop being one."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `size` is in ggml's order, fastest dimension first; `end` is in bytes from the file's start
    and None for a type that this module does not know."""

    size: tuple[int, ...]
    type: str
    end: int | None

    @property
    def parameters(self) -> int:
        return prod(self.size)


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata and tensors of one file. Arrays in the metadata are represented by their length; `vocabulary` is a
    digest of the tokens, and None where there are none."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    vocabulary: str | None = None

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    def number(self, key: str) -> int | None:
        """The integer `{architecture}.{key}`, or None."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return int(value) if isinstance(value, (int, float)) else None


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read and check the header of the file at `path`. Raises NotGGUF (cut short included) and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            header = _Reader(file).header()
        except (struct.error, EOFError, UnicodeDecodeError, KeyError, OverflowError, MemoryError) as exc:
            raise NotGGUF("it is cut short or damaged inside its header") from exc
    last = max((tensor.end for tensor in header.tensors.values() if tensor.end is not None), default=0)
    if last > size:
        raise NotGGUF(f"it is cut short: {size} bytes of {last}")
    return header


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._vocabulary: str | None = None

    def header(self) -> GGUFHeader:
        if self._file.read(4) != b"GGUF":
            raise NotGGUF("it does not begin with the letters GGUF")
        version = self._scalar("I")
        if version not in (2, 3):
            raise NotGGUF(f"it is of GGUF version {version}; 2 and 3 are known")
        tensor_count, key_count = self._count(), self._count()
        metadata = dict(self._entry() for _ in range(key_count))
        tensors = [self._tensor() for _ in range(tensor_count)]
        alignment = int(metadata.get("general.alignment", 32))
        data = -(-self._file.tell() // alignment) * alignment
        return GGUFHeader(
            metadata,
            {name: TensorInfo(size, type_, None if end is None else data + end) for name, size, type_, end in tensors},
            self._vocabulary,
        )

    def _entry(self) -> tuple[str, Any]:
        key, type_ = self._string(), self._scalar("I")
        start = self._file.tell()
        value = self._value(type_)
        if key == "tokenizer.ggml.tokens":
            end = self._file.tell()
            self._file.seek(start)
            self._vocabulary = hashlib.blake2b(self._bytes(end - start), digest_size=16).hexdigest()
        return key, value

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int | None]:
        name = self._string()
        size = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        type_id, offset = self._scalar("I"), self._scalar("Q")
        if type_id not in _TENSOR_TYPES:
            return name, size, f"type {type_id}", None
        type_, elements, block_bytes = _TENSOR_TYPES[type_id]
        return name, size, type_, offset + prod(size) // elements * block_bytes

    def _value(self, type_: int) -> Any:
        if type_ == _STRING:
            return self._string()
        if type_ != _ARRAY:
            return self._scalar(_SCALARS[type_])
        item_type, count = self._scalar("I"), self._count()
        if item_type == _STRING:
            for _ in range(count):
                self._file.seek(self._count(), 1)
        else:
            self._file.seek(count * struct.calcsize(_SCALARS[item_type]), 1)
        return count

    def _string(self) -> str:
        return self._bytes(self._count()).decode()

    def _count(self) -> int:
        count: int = self._scalar("Q")
        if count > _MAX_ITEMS:
            raise NotGGUF("a length in its header makes no sense")
        return count

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        value = self._file.read(count)
        if len(value) != count:
            raise EOFError
        return value
