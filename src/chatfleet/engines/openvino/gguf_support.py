"""Which GGUF files openvino-genai's reader takes (2026.4)."""

from typing import Final

from chatfleet.engines.openvino.gguf_header import GGUFHeader

GGUF_ARCHITECTURES: Final = ("llama", "qwen2", "qwen3")
"""What it builds graphs for."""

REFUSED_TENSOR_TYPES: Final = ("BF16", "F32")
"""Of matrices."""


def refused_type(header: GGUFHeader) -> str | None:
    """The type of some matrix that it does not take; None where it takes all."""
    matrix_types = {tensor.type for tensor in header.tensors.values() if len(tensor.size) > 1}
    return next((type_ for type_ in REFUSED_TENSOR_TYPES if type_ in matrix_types), None)


def reads(header: GGUFHeader) -> bool:
    return header.architecture in GGUF_ARCHITECTURES and refused_type(header) is None
