"""From a model path to a model that transformers has loaded, and what is known of it."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import EngineConfig

logger = logging.getLogger(__name__)

_GB: Final = 10**9
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DEFAULT_CONTEXT_LENGTH: Final = 2048
"""For models that name none, having no position embeddings (ALiBi, state spaces)."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode. `device` is where token ids go; layers may lie on others."""

    model: PreTrainedModel
    name: str
    model_type: str
    device: torch.device
    dtype: torch.dtype
    context_length: int
    vocab_size: int
    hidden_size: int


def load_model(config: EngineConfig) -> LoadedModel:
    """Load `config.model_path`, a folder with config.json and safetensors, or a GGUF file.

    Raises ConfigurationError, saying what is wrong and what to do.
    """
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if config.model_path is None:
        raise ConfigurationError("The transformers engine needs a model: a folder with safetensors, or a GGUF file.")
    path = Path(config.model_path).expanduser().absolute()
    if not path.exists():
        raise ConfigurationError(f"There is no model at {path}. Give a folder with safetensors, or a GGUF file.")
    device = choose_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "local_files_only": True}
    folder = path
    if path.is_file():
        folder, arguments["gguf_file"] = path.parent, path.name
    try:
        model_config = AutoConfig.from_pretrained(folder, **arguments)
        dtype = choose_dtype(config, device, model_config)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **_placement(config, device), **arguments
        )
    except ConfigurationError:
        raise
    except Exception as exc:  # of any kind: the libraries that it calls have their own
        raise _load_error(path, exc, trusts=config.trust_remote_code) from exc
    model.eval()  # type: ignore[no-untyped-call]
    text = model.config.get_text_config()
    return LoadedModel(
        model=model,
        name=path.name,
        model_type=text.model_type,
        device=torch.device(model.device),
        dtype=dtype,
        context_length=_context_length(config, text, path.name),
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
    )


def choose_device(wanted: str) -> torch.device:
    """The device that --device names, or the fastest there is. Raises ConfigurationError."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(wanted.lower())
    except RuntimeError as exc:
        raise ConfigurationError(
            f"--device {wanted} is no device of the transformers engine. Give auto, cpu, cuda, cuda:1, xpu or mps."
        ) from exc
    if device.type != "cpu" and (accelerator is None or accelerator.type != device.type):
        there = "cpu" if accelerator is None else f"cpu, {accelerator.type}"
        raise ConfigurationError(
            f"--device {wanted} is not there for torch {torch.__version__}, which sees {there}. Check the driver, and "
            "that torch was installed for this device (pytorch.org says how)."
        )
    return device


def choose_dtype(config: EngineConfig, device: torch.device, model_config: Any) -> torch.dtype:
    """What to compute in: what --dtype says; else float32 under --deterministic and where the hardware has nothing
    shorter, else what the weights are in, bfloat16 for weights in float32."""
    if config.deterministic:
        if config.dtype not in ("auto", "float32"):
            raise ConfigurationError(f"--deterministic computes in float32; leave out --dtype {config.dtype}.")
        return torch.float32
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    stored = getattr(model_config.get_text_config(), "dtype", None)
    if device.type == "cpu":
        # float16 products are emulated on most CPUs; bfloat16 ones too where there are no instructions for them.
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16() else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return stored if stored in (torch.float16, torch.bfloat16) else torch.bfloat16


def _has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; without that it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _placement(config: EngineConfig, device: torch.device) -> dict[str, Any]:
    """Where the weights go: on one device, or spread over the GPUs where one was not named and there are several."""
    if device.type == "cpu":
        return {}
    if device.index is not None or torch.accelerator.device_count() == 1:
        return {"device_map": {"": device}}
    placement: dict[str, Any] = {"device_map": "auto"}
    if config.max_gpu_memory_gb is not None:
        count = torch.accelerator.device_count()
        placement["max_memory"] = {index: int(config.max_gpu_memory_gb * _GB) for index in range(count)}
    return placement


def _context_length(config: EngineConfig, text: Any, name: str) -> int:
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "max_sequence_length", None)
    if not longest:
        logger.info("%s names no context length; taking %d", name, _DEFAULT_CONTEXT_LENGTH)
        longest = _DEFAULT_CONTEXT_LENGTH
    longest = int(min(longest, _static_rope_length(text)))
    if config.context_length is None:
        return longest
    if not 0 < config.context_length <= longest:
        raise ConfigurationError(
            f"A context length of {config.context_length} was asked for, but {name} can be served with up to "
            f"{longest}. Give a number from 1 to that, or none."
        )
    return config.context_length


def _static_rope_length(text: Any) -> float:
    """How many tokens the rotary embeddings stay the same for. With "dynamic" and "longrope" ones they change for all
    sequences of a batch when the longest passes the original length: up to there nobody changes anybody's."""
    ropes = getattr(text, "rope_parameters", None) or {}
    lengths = [math.inf]
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings")
            lengths.append(original or getattr(text, "original_max_position_embeddings", text.max_position_embeddings))
            logger.info("rotary embeddings of type %s bound the context to %d tokens", rope["rope_type"], lengths[-1])
    return min(lengths)


def _load_error(path: Path, exc: Exception, *, trusts: bool) -> ConfigurationError:
    said = str(exc).strip().split("\n")[0] or type(exc).__name__
    advice = "Check that the model is whole."
    if isinstance(exc, ImportError):
        advice = "Install what it names."
    elif "trust_remote_code" in str(exc) and not trusts:
        said = "it brings Python code of its own"
        advice = "Read that code, and if you trust it give --trust-remote-code."
    elif "out of memory" in str(exc).lower() or isinstance(exc, MemoryError):
        advice = "Choose a smaller or quantised model, a shorter --dtype, or a device with more memory."
    elif "safetensors" in str(exc) and path.is_dir():
        advice = "Weights in pickle files are not loaded, since they can run code: convert them to safetensors."
    elif "model type" in str(exc) or "Unrecognized" in str(exc):
        advice = "This version of transformers does not know it: pip install -U transformers may."
    return ConfigurationError(f"transformers could not load {path}: {said.rstrip('.')}. {advice}")
