"""From a model path to an IR folder that the pipeline loads, and what is known of the model."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.memory import WEIGHTS_FACTOR, KVShape
from chatfleet.engines.openvino.gguf_header import GGUFHeader, NotGGUF, read_gguf_header
from chatfleet.engines.openvino.gguf_support import GGUF_ARCHITECTURES, refused_type

IR_NAME = "openvino_model.xml"
FOLDER_PREFIX = "chatfleet-openvino-"
_ABANDONED_AFTER_S = 6 * 3600
"""Longer than any load: seconds for 1 GB, minutes for a hundred."""


@dataclass(frozen=True)
class ModelInfo:
    """A model's figures. `weights_bytes` is what they take on disk; `vocabulary` is a digest of the tokens, the same
    for the same tokens in the same form of file, and None where they are not known; `architecture` is a GGUF's."""

    path: Path
    context_length: int
    vocab_size: int
    hidden_size: int
    ffn_size: int
    parameters: int
    weights_bytes: int
    kv: KVShape
    vocabulary: str | None = None
    architecture: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @property
    def resident_bytes(self) -> int:
        return int(self.weights_bytes * WEIGHTS_FACTOR)


def inspect_model(model_path: str | None) -> ModelInfo:
    """Look at the GGUF file or IR folder at `model_path`, without its weights.

    Raises ConfigurationError, saying what is wrong and what to do, for anything that the engine cannot load.
    """
    if model_path is None:
        raise ConfigurationError("The OpenVINO engine needs a model: a GGUF file or an OpenVINO IR folder.")
    path = Path(model_path).expanduser().absolute()
    if not path.exists():
        raise ConfigurationError(f"There is no model at {path}. Give the path of a GGUF file or an OpenVINO IR folder.")
    try:
        if path.is_dir():
            return _inspect_ir(path)
        if path.suffix != ".gguf":
            raise ConfigurationError(
                f"{path} is not a GGUF file by its name. The OpenVINO engine loads *.gguf files and folders with "
                f"an {IR_NAME}."
            )
        return _inspect_gguf(path)
    except OSError as exc:
        raise ConfigurationError(f"Cannot read the model at {path}: {exc.strerror}. Check its permissions.") from exc


def _inspect_gguf(path: Path) -> ModelInfo:
    try:
        header = read_gguf_header(path)
    except NotGGUF as exc:
        raise ConfigurationError(f"{path} is not a usable GGUF file: {exc}. Download or convert it again.") from exc
    if header.architecture not in GGUF_ARCHITECTURES:
        raise ConfigurationError(
            f"{path} holds a {header.architecture} model; from GGUF the OpenVINO engine loads "
            f"{', '.join(GGUF_ARCHITECTURES)}. Convert the original model to OpenVINO IR (optimum-cli export "
            "openvino), or serve it with --engine transformers."
        )
    _check_tensor_types(path, header)
    needed = ("context_length", "embedding_length", "block_count", "attention.head_count", "feed_forward_length")
    numbers = {key: header.number(key) for key in needed}
    embeddings = header.tensors.get("token_embd.weight")
    missing = [f"{header.architecture}.{key}" for key, value in numbers.items() if not value]
    if embeddings is None or missing:
        lacks = ", ".join(missing) or "token_embd.weight"
        raise ConfigurationError(f"{path} lacks {lacks}: it is not a whole language model. Convert it again.")
    hidden, heads = numbers["embedding_length"] or 0, numbers["attention.head_count"] or 0
    return ModelInfo(
        path=path,
        context_length=numbers["context_length"] or 0,
        vocab_size=embeddings.size[-1],
        hidden_size=hidden,
        ffn_size=numbers["feed_forward_length"] or 0,
        parameters=sum(tensor.parameters for tensor in header.tensors.values()),
        weights_bytes=path.stat().st_size,
        kv=KVShape(
            layers=numbers["block_count"] or 0,
            kv_heads=header.number("attention.head_count_kv") or heads,
            head_size=header.number("attention.key_length") or hidden // heads,
        ),
        vocabulary=header.vocabulary,
        architecture=header.architecture,
    )


def _check_tensor_types(path: Path, header: GGUFHeader) -> None:
    type_ = refused_type(header)
    if type_ is not None:
        raise ConfigurationError(
            f"{path} stores weights as {type_}, which OpenVINO's GGUF reader does not take. Convert it to "
            f"F16 or Q8_0 (llama.cpp: llama-quantize {path.name} {path.stem}-f16.gguf F16), or serve the "
            "original model with --engine transformers."
        )


def _inspect_ir(path: Path) -> ModelInfo:
    for name in (IR_NAME, "openvino_model.bin", "config.json"):
        if not (path / name).is_file():
            raise ConfigurationError(
                f"{path} is not an OpenVINO language model: it has no {name}. Make such a folder with "
                "optimum-cli export openvino --model MODEL FOLDER, or give a GGUF file."
            )
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        config = config.get("text_config", config)
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        layers, vocab_size = int(config["num_hidden_layers"]), int(config["vocab_size"])
        ffn_size = int(config["intermediate_size"])
        head_size = int(config.get("head_dim") or hidden // heads)
        context_length = int(config["max_position_embeddings"])
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigurationError(
            f"{path / 'config.json'} does not describe a language model ({exc!r}). Copy the original model's "
            "config.json there, or export the model again."
        ) from exc
    attention = 2 * hidden * head_size * (heads + kv_heads)
    return ModelInfo(
        path=path,
        context_length=context_length,
        vocab_size=vocab_size,
        hidden_size=hidden,
        ffn_size=ffn_size,
        parameters=layers * (attention + 3 * hidden * ffn_size) + vocab_size * hidden,
        weights_bytes=(path / "openvino_model.bin").stat().st_size,
        kv=KVShape(layers=layers, kv_heads=kv_heads, head_size=head_size),
        vocabulary=_vocabulary(path / "tokenizer.json"),
    )


def _vocabulary(tokenizer_json: Path) -> str | None:
    try:
        tokens = json.loads(tokenizer_json.read_text())["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.blake2b(json.dumps(tokens, sort_keys=True).encode(), digest_size=16).hexdigest()


@contextmanager
def ir_folder(model: ModelInfo) -> Iterator[Path]:
    """A folder with the model as IR, for the time of the `with` block.

    For a GGUF file it is a temporary one, never beside the file: installed models lie in folders that
    are read-only or someone else's. It takes as much space as the file. Raises ConfigurationError.
    """
    if not model.is_gguf:
        yield model.path
        return
    from chatfleet.engines.openvino.conversion import convert_gguf

    _remove_abandoned_folders()
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        folder = Path(name)
        try:
            convert_gguf(model.path, folder)
        except (OSError, RuntimeError, ValueError, IndexError, MemoryError) as exc:
            free = shutil.disk_usage(folder).free
            raise ConfigurationError(
                f"OpenVINO could not convert {model.path}: {first_line(exc)} (in {folder}, where {free / 1e9:.1f} GB "
                f"are free of {model.weights_bytes / 1e9:.1f} GB that it takes; TMPDIR chooses another place)."
            ) from exc
        yield folder


def _remove_abandoned_folders() -> None:
    """What a process that was killed while it loaded has left behind: gigabytes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(folder)


def first_line(exc: BaseException) -> str:
    """The telling line of an OpenVINO exception: its messages begin with C++ source locations."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(exc).__name__])[-1]
