"""GGUF to OpenVINO IR, by openvino-genai's own reader."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

from chatfleet.engines.openvino.ir import shift_logits

_NO_DEVICE = "CHATFLEET_CONVERSION_ONLY"


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """Write the model in `gguf` to `folder` as openvino_model.xml and .bin, with shifted logits.

    Quantised weights stay quantised; the rest is F16. The files take as much space as the GGUF. Returns the
    .xml. Raises what the reader raises (RuntimeError, IndexError), OSError and ValueError.
    """
    link = folder / "model.gguf"
    link.symlink_to(gguf)
    # The one way in Python: a pipeline saves the IR beside the GGUF before it compiles it. No device has this
    # name, so the compiling, which takes as long as a load and as much memory, does not happen.
    try:
        genai.ContinuousBatchingPipeline(
            str(link), _empty_tokenizer(folder), genai.SchedulerConfig(), _NO_DEVICE, enable_save_ov_model=True
        )
    except RuntimeError as exc:
        if _NO_DEVICE not in str(exc):
            raise
    link.unlink()
    model_xml = folder / "openvino_model.xml"
    shift_logits(model_xml)
    return model_xml


def _empty_tokenizer(folder: Path) -> Any:
    """A tokenizer that knows nothing. Without one the pipeline makes its own from the GGUF, and fails where that
    has none or one of SentencePiece's kind; ours lives in the worker."""
    tokenizer, detokenizer = _empty_tokenizer_graphs()
    return genai.Tokenizer(*_serialized(tokenizer, folder), *_serialized(detokenizer, folder))


def write_empty_tokenizer(folder: Path) -> None:
    """The same as files, for a pipeline that looks for them in the model's folder."""
    for graph in _empty_tokenizer_graphs():
        name = f"openvino_{graph.get_friendly_name()}"
        ov.serialize(graph, folder / f"{name}.xml", folder / f"{name}.bin")


def _empty_tokenizer_graphs() -> tuple[ov.Model, ov.Model]:
    one_token = np.ones((1, 1), np.int64)
    ids, mask = ops.result(ops.constant(one_token)), ops.result(ops.constant(one_token))
    ids.output(0).set_names({"input_ids"})
    mask.output(0).set_names({"attention_mask"})
    tokenizer = ov.Model([ids, mask], [ops.parameter([-1], ov.Type.string)], "tokenizer")
    # OpenVINO 2026.4.1 takes the array's memory for std::string objects: zeros are an empty one, anything else, or an
    # element shorter than such an object, is a length and a pointer from whatever lies there (std::bad_alloc).
    text = ops.result(ops.constant(np.zeros(1, "S64")))
    detokenizer = ov.Model([text], [ops.parameter([-1, -1], ov.Type.i64)], "detokenizer")
    return tokenizer, detokenizer


def _serialized(model: ov.Model, folder: Path) -> tuple[str, ov.Tensor]:
    xml, weights = folder / "tokenizer.xml", folder / "tokenizer.bin"
    ov.serialize(model, xml, weights)
    text, data = xml.read_text(), np.fromfile(weights, np.uint8)
    xml.unlink()
    weights.unlink()
    return text, ov.Tensor(data)
