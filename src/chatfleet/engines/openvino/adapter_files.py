"""LoRA adapters as PEFT saves them: a safetensors file, and an adapter_config.json beside it.

Format: https://huggingface.co/docs/safetensors (a length, a JSON header, then the values). Own code because the
OpenVINO extra has no other use for the package.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatfleet.core.errors import ConfigurationError

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_MAX_HEADER_BYTES = 100_000_000
_NAME = re.compile(r"(?:.*?\.)?(layers\.\d+\..+)\.lora_(A|B)(?:\.default)?\.weight")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight: `up` [out, rank] times `down` [rank, in], the adapter's scale in `up`."""

    down: "np.ndarray"
    up: "np.ndarray"


@dataclass(frozen=True)
class Adapter:
    """`modules` is by name from the layer on, such as `layers.0.self_attn.q_proj`."""

    path: Path
    modules: Mapping[str, LowRank]


def read_adapter(lora_path: str) -> Adapter:
    """Read the safetensors file, or the PEFT folder with an adapter_model.safetensors, at `lora_path`.

    Raises ConfigurationError, saying what is wrong and what to do, for what is no LoRA adapter of a kind that can be
    added to a model's weights.
    """
    path = Path(lora_path).expanduser().absolute()
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    if not weights.is_file():
        raise ConfigurationError(
            f"There is no LoRA adapter at {weights}. Give a safetensors file or a folder as PEFT's save_pretrained "
            f"writes it, with {WEIGHTS_NAME} and {CONFIG_NAME}."
        )
    try:
        config = _read_config(weights.with_name(CONFIG_NAME))
        tensors = _read_safetensors(weights)
    except OSError as exc:
        raise ConfigurationError(f"Cannot read the adapter at {path}: {exc.strerror}. Check its permissions.") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigurationError(f"{path} is not a usable LoRA adapter: {exc}. Download or save it again.") from exc
    return Adapter(path, _modules(path, tensors, config))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text())
    for name in ("use_dora", "use_qalora", "fan_in_fan_out"):
        if config.get(name):
            raise ValueError(f"{path.name} says {name}, which the OpenVINO engine does not know")
    return config


def _read_safetensors(path: Path) -> dict[str, "np.ndarray"]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError("it does not begin with a safetensors header")
        header: dict[str, Any] = json.loads(file.read(length))
        values = file.read()
    header.pop("__metadata__", None)
    return {name: _tensor(values, entry) for name, entry in header.items()}


def _tensor(values: bytes, entry: Mapping[str, Any]) -> "np.ndarray":
    start, end = entry["data_offsets"]
    data = values[start:end]
    match entry["dtype"]:
        case "F32":
            flat = np.frombuffer(data, "<f4")
        case "F16":
            flat = np.frombuffer(data, "<f2").astype(np.float32)
        case "BF16":
            flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case other:
            raise ValueError(f"it has tensors of type {other}; F32, F16 and BF16 are known")
    return flat.reshape(entry["shape"])


def _modules(path: Path, tensors: Mapping[str, "np.ndarray"], config: Mapping[str, Any]) -> dict[str, LowRank]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None or tensor.ndim != 2:
            unknown.append(name)
        else:
            parts.setdefault(found[1], {})[found[2]] = tensor
    unknown += [module for module, pair in parts.items() if pair.keys() != {"A", "B"}]
    if unknown or not parts:
        what = f"it has {', '.join(sorted(unknown)[:3])}" if unknown else "it is empty"
        raise ConfigurationError(
            f"{path} is not a LoRA adapter of linear layers alone ({what}). Merge it into its model (PEFT: "
            "merge_and_unload), convert the result and serve that, or serve both with --engine transformers."
        )
    try:
        return {name: _low_rank(name, pair["A"], pair["B"], config) for name, pair in parts.items()}
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"{path} is not a usable LoRA adapter: {exc}. Download or save it again.") from exc


def _low_rank(name: str, down: "np.ndarray", up: "np.ndarray", config: Mapping[str, Any]) -> LowRank:
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ValueError(f"the ranks of {name}'s two parts differ ({rank} and {up.shape[1]})")
    alpha = config.get("lora_alpha", rank)
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = other
            break
    scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    return LowRank(down, up * np.float32(scale))
