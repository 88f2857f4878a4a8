"""The tokenizers that the pipeline gets: ours lives in the worker, so these know nothing, or the vocabulary alone."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset15 as ops
from openvino.utils.node_factory import NodeFactory


def empty_tokenizer() -> Any:
    """A tokenizer that knows nothing. Without one the pipeline makes its own from the GGUF, and fails where that
    has none or one of SentencePiece's kind."""
    return _tokenizer(_no_tokens(), _no_text())


def write_empty_tokenizer(folder: Path) -> None:
    """The same as files, for a pipeline that looks for them in the model's folder."""
    for graph in (_no_tokens(), _no_text()):
        name = f"openvino_{graph.get_friendly_name()}"
        ov.serialize(graph, folder / f"{name}.xml", folder / f"{name}.bin")


def vocabulary_tokenizer(vocabulary: Sequence[bytes], *, eos_token_id: int) -> Any:
    """A tokenizer that makes no tokens of text but knows what each of them stands for: what grammars are held to.

    They take the bytes as they are, and a token that stands for nothing as a control token, which nothing matches.
    """
    tokenizer = _no_tokens()
    tokenizer.set_rt_info(eos_token_id, "eos_token_id")
    return _tokenizer(tokenizer, _spelling(vocabulary))


def _no_tokens() -> ov.Model:
    one_token = np.ones((1, 1), np.int64)
    ids, mask = ops.result(ops.constant(one_token)), ops.result(ops.constant(one_token))
    ids.output(0).set_names({"input_ids"})
    mask.output(0).set_names({"attention_mask"})
    return ov.Model([ids, mask], [ops.parameter([-1], ov.Type.string)], "tokenizer")


def _no_text() -> ov.Model:
    # OpenVINO 2026.4.1 takes the array's memory for std::string objects: zeros are an empty one, anything else, or an
    # element shorter than such an object, is a length and a pointer from whatever lies there (std::bad_alloc).
    text = ops.result(ops.constant(np.zeros(1, "S64")))
    return ov.Model([text], [ops.parameter([-1, -1], ov.Type.i64)], "detokenizer")


def _spelling(vocabulary: Sequence[bytes]) -> ov.Model:
    """Token ids to their bytes. The pipeline looks for an operation named VocabDecoder and reads its constants."""
    lengths = np.array([len(token) for token in vocabulary], np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    constants = (ends - lengths, ends, np.frombuffer(b"".join(vocabulary), np.uint8))
    ids = ops.parameter([-1, -1], ov.Type.i64)
    inputs = [ops.convert(ids, ov.Type.i32), *map(ops.constant, constants)]
    factory = _factory()
    decoded = factory.create("VocabDecoder", [node.output(0) for node in inputs], {"skip_tokens": []})
    *ranges, chars = decoded.outputs()
    begins, ends_of_texts = factory.create("FuzeRagged", ranges, {}).outputs()
    text = ops.result(ops.string_tensor_pack(begins, ends_of_texts, chars))
    return ov.Model([text], [ids], "detokenizer")


@cache  # a graph dies with the library that its operations are from
def _factory() -> NodeFactory:
    import openvino_tokenizers  # type: ignore[import-untyped]  # changes openvino.Core, as making a tokenizer does

    factory = NodeFactory()
    factory.add_extension(openvino_tokenizers._ext_path)
    return factory


def _tokenizer(tokenizer: ov.Model, detokenizer: ov.Model) -> Any:
    return genai.Tokenizer(*_serialized(tokenizer), *_serialized(detokenizer))


def _serialized(model: ov.Model) -> tuple[str, ov.Tensor]:
    with TemporaryDirectory() as folder:
        xml, weights = Path(folder) / "tokenizer.xml", Path(folder) / "tokenizer.bin"
        ov.serialize(model, xml, weights)
        return xml.read_text(), ov.Tensor(np.fromfile(weights, np.uint8))
