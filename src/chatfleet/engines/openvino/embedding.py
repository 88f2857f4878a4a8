"""Embeddings from a chat model: the mean of its last hidden states, L2-normalised."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino as ov

CHUNK_TOKENS = 512
"""Tokens per inference: bounds the activations of a long input (a 4864-wide MLP takes 10 MB here)."""


class EmbeddingModel:
    """The model without its lm_head. Holds a second compiled copy of the weights, so make it when needed."""

    def __init__(self, model_xml: Path, device: str, properties: Mapping[str, str]) -> None:
        """Compile the IR at `model_xml`, whose files may go afterwards. Raises RuntimeError and ValueError."""
        core = ov.Core()
        graph = core.read_model(model_xml)
        hidden = _last_hidden_state(graph)
        headless = ov.Model([hidden], graph.get_sinks(), graph.get_parameters(), "embedding")
        self._request = core.compile_model(headless, device, dict(properties)).create_infer_request()
        self._inputs = {name for parameter in headless.inputs for name in parameter.names}

    def embed(self, prompt_token_ids: list[int]) -> bytes:
        """`hidden_size` little-endian float32 values."""
        total: np.ndarray | float = 0.0
        self._request.reset_state()
        for start in range(0, len(prompt_token_ids), CHUNK_TOKENS):
            chunk = prompt_token_ids[start : start + CHUNK_TOKENS]
            end = start + len(chunk)
            inputs = {
                "input_ids": np.array([chunk], np.int64),
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            self._request.infer({name: inputs[name] for name in inputs if name in self._inputs})
            total = total + self._request.get_output_tensor(0).data[0].astype(np.float64).sum(axis=0)
        self._request.reset_state()
        vector = np.asarray(total, np.float64)  # the mean but for a factor that the normalisation takes out
        norm = float(np.linalg.norm(vector))
        return (vector / norm if norm > 0 else vector).astype("<f4").tobytes()


def _last_hidden_state(graph: "ov.Model") -> "ov.Output":
    """The input of the lm_head product, which is the final norm's output."""
    node = graph.output(0).get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":  # past a shift, a soft cap or a conversion of the logits
        if node.get_input_size() == 0:
            raise ValueError("the graph does not end in an lm_head product")
        node = node.input_value(0).get_node()
    return node.input_value(0)
