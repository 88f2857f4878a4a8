"""The model as plain graphs beside the pipeline: for embeddings, and for log probabilities of a prompt's own tokens.

The pipeline gives neither hidden states nor, in a batch, right log probabilities of a prompt: with `echo` it takes
them from the rows of the logits that belong to the neighbours before it, and gives none of what its prefix cache held
(openvino-genai 2026.4.1).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from chatfleet.engines.openvino.model_files import IR_NAME

CHUNK_TOKENS = 512
"""Tokens per inference of an embedding: bounds the activations of a long input (a 4864-wide MLP takes 10 MB here)."""


class HiddenStates:
    """The model without its lm_head. Holds a second compiled copy of the weights, so make it when needed."""

    def __init__(self, folder: Path, device: str, properties: Mapping[str, str]) -> None:
        """Compile the IR in `folder`, whose files may go afterwards. Raises RuntimeError and ValueError."""
        core = ov.Core()
        graph = core.read_model(folder / IR_NAME)
        hidden = _lm_head(graph).input_value(0)
        headless = ov.Model([hidden], graph.get_sinks(), graph.get_parameters(), "hidden_states")
        self._compiled = core.compile_model(headless, device, dict(properties))
        self._inputs = {name for parameter in headless.inputs for name in parameter.names}

    def begin(self) -> "Reading":
        return Reading(self._compiled.create_infer_request(), self._inputs)


class Reading:
    """One text, read part by part, with a KV cache of its own that goes with this object."""

    def __init__(self, infer_request: Any, inputs: set[str]) -> None:
        self._infer_request = infer_request
        self._inputs = inputs
        self._length = 0

    def read(self, token_ids: Sequence[int]) -> "np.ndarray":
        """The last hidden states of the next tokens, [tokens, hidden_size]. Valid until the next call."""
        start, self._length = self._length, self._length + len(token_ids)
        inputs = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(start, self._length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._infer_request.infer({name: inputs[name] for name in inputs if name in self._inputs})
        states: np.ndarray = self._infer_request.get_output_tensor(0).data[0]
        return states


class LogProbabilities:
    """The lm_head: from hidden states to log probabilities. Holds its weights once more."""

    def __init__(self, folder: Path, device: str, properties: Mapping[str, str]) -> None:
        """Compile the IR in `folder`, whose files may go afterwards. Raises RuntimeError and ValueError."""
        core = ov.Core()
        graph = core.read_model(folder / IR_NAME)
        lm_head = _lm_head(graph)
        hidden = lm_head.input_value(0)
        states = ops.parameter([1, -1, hidden.get_partial_shape()[2].get_length()], hidden.get_element_type())
        lm_head.input(0).replace_source_output(states.output(0))
        token_ids = ops.parameter([1, -1, 1], ov.Type.i64)
        logits = ops.convert(graph.output(0).get_node().input_value(0), ov.Type.f32)
        chosen = ops.gather_elements(logits, token_ids, 2)
        best = ops.reduce_max(logits, 2, keep_dims=True)
        others = ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, best)), 2, keep_dims=True))
        result = ops.subtract(ops.subtract(chosen, best), others)
        head = ov.Model([result], [states, token_ids], "log_probabilities")
        self._infer_request = core.compile_model(head, device, dict(properties)).create_infer_request()

    def of(self, token_ids: Sequence[int], hidden_states: "np.ndarray") -> list[float]:
        """The log probability of each token, given the hidden state of the one before it."""
        self._infer_request.infer([hidden_states[None], np.array(token_ids, np.int64)[None, :, None]])
        values: list[float] = self._infer_request.get_output_tensor(0).data.ravel().tolist()
        return values


def embedding(model: HiddenStates, prompt_token_ids: list[int]) -> bytes:
    """The mean of the last hidden states, L2-normalised: `hidden_size` little-endian float32 values."""
    reading = model.begin()
    total: np.ndarray | float = 0.0
    for start in range(0, len(prompt_token_ids), CHUNK_TOKENS):
        states = reading.read(prompt_token_ids[start : start + CHUNK_TOKENS])
        total = total + states.astype(np.float64).sum(axis=0)
    vector = np.asarray(total, np.float64)  # the mean but for a factor that the normalisation takes out
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm > 0 else vector).astype("<f4").tobytes()


Made = TypeVar("Made")


class OnDemand(Generic[Made]):
    """Something that takes long to make, made in a thread when it is first asked for.

    18 s of a 0.4B model's neighbours' time if it were not in a thread, and memory that most never need.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._future: Future[Made] | None = None

    def ready(self) -> bool:
        """Whether `get` answers at once. The first call begins the making."""
        if self._future is None:
            executor = ThreadPoolExecutor(1, thread_name_prefix="on-demand")
            self._future = executor.submit(self._make)
            executor.shutdown(wait=False)  # it still does what it has
        return self._future.done()

    def get(self) -> Made:
        """Waits for it. Raises what the making raised; then the next call tries again."""
        self.ready()
        assert self._future is not None
        try:
            return self._future.result()
        except Exception:
            self._future = None
            raise

    def forget(self) -> None:
        self._future = None


def _lm_head(graph: "ov.Model") -> "ov.Node":
    """The product that makes the logits; its first input is the final norm's output."""
    node = graph.output(0).get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":  # past a shift, a soft cap or a conversion of the logits
        if node.get_input_size() == 0:
            raise ValueError("the graph does not end in an lm_head product")
        node = node.input_value(0).get_node()
    return node
