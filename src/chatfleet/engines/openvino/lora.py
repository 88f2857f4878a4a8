"""A LoRA adapter in the graph: its two narrow products beside each product that it changes.

openvino-genai (2026.4.1) applies adapters in `generate` alone, not to requests that are added, and where a module's
name is not the one it expects it warns and leaves the model as it is. So the graph gets them before it is compiled,
and the loaded pipeline is asked whether they change anything.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.openvino.adapter_files import Adapter, LowRank
from chatfleet.engines.openvino.model_files import FOLDER_PREFIX, IR_NAME, ModelInfo

_MODULE = re.compile(r"layers[.\[](\d+)\]?\.([\w.]+?)(?:\.weight.*|/.*|)$")
_UNPERMUTED = ("qwen2", "qwen3")
"""GGUF architectures whose query and key weights are as the original model has them; llama's are in another order."""

_PROBES, _PROBE_TOKENS = 4, 8
"""Prompts that show whether an adapter changes anything, and their length."""


@contextmanager
def adapted_folder(folder: Path, model: ModelInfo, adapter: Adapter) -> Iterator[Path]:
    """A temporary folder with the IR of `folder`, the adapter in it. It takes as much space. Raises
    ConfigurationError where the adapter does not fit the model, and OSError."""
    if model.architecture not in (None, *_UNPERMUTED):
        raise ConfigurationError(
            f"A LoRA adapter cannot be added to {model.path}: a GGUF file of the {model.architecture} architecture has "
            "its weights in another order than the adapter. Give the original model, or its OpenVINO IR."
        )
    graph = ov.Core().read_model(folder / IR_NAME)
    add_adapter(graph, model, adapter)
    with TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        adapted = Path(name)
        for path in folder.iterdir():
            if path.stem != Path(IR_NAME).stem:
                (adapted / path.name).symlink_to(path.resolve())
        ov.serialize(graph, adapted / IR_NAME, (adapted / IR_NAME).with_suffix(".bin"))
        yield adapted


def add_adapter(graph: "ov.Model", model: ModelInfo, adapter: Adapter) -> None:
    """Edit `graph`. The adapter works on tokens under the vocabulary's size; a token id plus that size is the same
    token without it, which no request can say. Raises ConfigurationError where the adapter does not fit."""
    products = _products(graph)
    if not products:
        raise ConfigurationError(
            f"A LoRA adapter cannot be added to {model.path}: its graph does not name its layers, as that of a "
            "quantised GGUF file. Give an F16 GGUF file, or an OpenVINO IR folder (quantised or not)."
        )
    missing = sorted(adapter.modules.keys() - products.keys())
    if missing:
        raise ConfigurationError(
            f"The LoRA adapter {adapter.path} is for another model than {model.path}, which has no "
            f"{', '.join(missing[:3])}. Give the adapter's own base model."
        )
    token_ids = next(parameter for parameter in graph.get_parameters() if "input_ids" in parameter.output(0).names)
    users = list(token_ids.output(0).get_target_inputs())
    size = ops.constant(np.int64(model.vocab_size))
    plain_ids = ops.floor_mod(token_ids, size)
    for user in users:
        user.replace_source_output(plain_ids.output(0))
    is_on = ops.convert(ops.unsqueeze(ops.less(token_ids, size), ops.constant(np.int64(-1))), ov.Type.f32)
    for name, low_rank in adapter.modules.items():
        _add_beside(products[name], low_rank, is_on, f"{name} of {adapter.path}")
    graph.validate_nodes_and_infer_types()


def show_effect(adapter: Adapter, vocab_size: int, say: Callable[["np.ndarray"], list[float]]) -> None:
    """Raises ConfigurationError where the model says the same with the adapter and without.

    `say` gives what the model makes of prompts [prompts, 1, tokens]: the next tokens and their log probabilities.
    """
    prompts = np.random.default_rng(0).integers(0, vocab_size, (_PROBES, 1, _PROBE_TOKENS))
    with_it, without = say(prompts), say(prompts + vocab_size)
    if np.allclose(with_it, without, rtol=0, atol=1e-5):
        raise ConfigurationError(
            f"The LoRA adapter {adapter.path} changes nothing: the model gives the same log probabilities with it and "
            "without. It may never have been trained (its B matrices are zero). Give another, or none."
        )


def _products(graph: "ov.Model") -> dict[str, "ov.Node"]:
    """The linear layers' products by their module's name, as far as the graph tells it."""
    products = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            name = module_name(node.get_friendly_name()) or module_name(_weights_name(node))
            if name is not None:
                products[name] = node
    return products


def module_name(name: str) -> str | None:
    """The module, from its layer on, that a node or a constant of optimum-intel or of the GGUF reader is of."""
    found = _MODULE.search(name)
    return None if found is None else f"layers.{found[1]}.{found[2]}"


def _weights_name(product: "ov.Node") -> str:
    """The name of the constant that a product's weights come from, whatever it is unpacked by; or an empty one."""
    node = product.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_friendly_name() if node.get_type_name() == "Constant" else ""


def _add_beside(product: "ov.Node", low_rank: LowRank, is_on: "ov.Node", what: str) -> None:
    rows, columns = low_rank.up.shape[0], low_rank.down.shape[1]
    weights = [dimension.get_length() for dimension in product.input_value(1).get_partial_shape()]
    if not product.get_attributes()["transpose_b"]:
        weights.reverse()
    if weights != [rows, columns]:
        raise ConfigurationError(
            f"The LoRA adapter does not fit the model: {what} is for {columns} to {rows} values, but there the model "
            f"has {weights[1]} to {weights[0]}. Give the adapter's own base model."
        )
    users = list(product.output(0).get_target_inputs())
    narrow = ops.matmul(product.input_value(0), ops.constant(low_rank.down), False, True)
    change = ops.matmul(ops.multiply(narrow, is_on), ops.constant(low_rank.up), False, True)
    changed = ops.add(product, change)
    for user in users:
        user.replace_source_output(changed.output(0))
