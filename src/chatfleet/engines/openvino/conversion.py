"""GGUF to OpenVINO IR, by openvino-genai's own reader."""

from pathlib import Path

import openvino_genai as genai

from chatfleet.engines.openvino.ir import shift_logits
from chatfleet.engines.openvino.vocabulary import empty_tokenizer

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
            str(link), empty_tokenizer(), genai.SchedulerConfig(), _NO_DEVICE, enable_save_ov_model=True
        )
    except RuntimeError as exc:
        if _NO_DEVICE not in str(exc):
            raise
    link.unlink()
    model_xml = folder / "openvino_model.xml"
    shift_logits(model_xml)
    return model_xml
