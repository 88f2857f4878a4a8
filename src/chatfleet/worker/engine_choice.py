"""Which engine runs a model: a decision, from what the model is, what the machine has and what was asked for."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.registry import install_command
from chatfleet.worker.settings import EngineName, EngineSettings

Form = Literal["gguf", "ir", "safetensors"]

_DEVICES: Final[dict[str, EngineName]] = {
    "cuda": "transformers",
    "mps": "transformers",
    "xpu": "transformers",
    "gpu": "openvino",
    "npu": "openvino",
}
"""Devices that only one engine calls so. `cpu` and `auto` are known to both."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What there is to run. `form` is None where no model was named: then it is the bundled one.

    `architecture` is what the files call it, such as qwen2 or Qwen2ForCausalLM. `openvino_reads_it` is of a GGUF file;
    `is_converted` says of safetensors that an IR folder made of them is kept already.
    """

    form: Form | None = None
    architecture: str = ""
    openvino_reads_it: bool = True
    is_converted: bool = False

    def __str__(self) -> str:
        words = {"gguf": "a GGUF file", "ir": "an OpenVINO IR folder", "safetensors": "safetensors"}
        what = "the bundled model" if self.form is None else words[self.form]
        return f"{what} of {self.architecture}" if self.architecture else what


@dataclass(frozen=True, slots=True)
class Host:
    """What the machine has. `installed` names the engines whose packages are there; `accelerator` is what the PyTorch
    that is installed can compute on beside the CPU, such as "a CUDA GPU"."""

    installed: frozenset[str]
    accelerator: str | None = None


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """`reason` is for a person: it goes on behind "engine openvino: "."""

    engine: EngineName
    reason: str


def choose_engine(settings: EngineSettings, model: ModelFacts, host: Host) -> EngineChoice:
    """The engine for `model`. Pure.

    Raises ConfigurationError where what was asked for goes together with no engine, and, naming the command that
    installs it, where the engine that it takes is not installed.
    """
    choice = _choice(settings, model, host)
    if choice.engine not in host.installed:
        raise ConfigurationError(
            f"The {choice.engine} engine is needed for {model}, and is not installed. Install it: "
            f"{install_command(choice.engine)}"
        )
    return choice


def device_engine(device: str) -> EngineName | None:
    """The engine that alone knows a device of this name; None where both do."""
    head, *rest = re.split(r"[:.]", device.lower())
    if head in ("auto", "hetero", "multi") and rest:
        return "openvino"  # AUTO:GPU,CPU
    return _DEVICES.get(head)


def _choice(settings: EngineSettings, model: ModelFacts, host: Host) -> EngineChoice:
    wishes = _wishes(settings)
    engines = {engine: flag for flag, engine in reversed(wishes)}
    if settings.engine != "auto":
        for flag, engine in wishes:
            if engine != settings.engine:
                raise ConfigurationError(
                    f"{flag} needs the {engine} engine, and --engine {settings.engine} was given. Leave one "
                    "of them out."
                )
        return EngineChoice(settings.engine, "as --engine says")
    if len(engines) > 1:
        (one, first), (other, second) = engines.items()
        raise ConfigurationError(
            f"{first} needs the {one} engine and {second} the {other} engine. Leave one of them out."
        )
    if model.form == "ir":
        if "transformers" in engines:
            raise ConfigurationError(
                f"{engines['transformers']} needs the transformers engine, which does not run an OpenVINO IR folder. "
                "Leave it out, or give the model as safetensors."
            )
        return EngineChoice("openvino", str(model))
    for engine, flag in engines.items():
        return EngineChoice(engine, f"{flag} needs it")
    return _by_model(model, host, _usable_accelerator(settings, host))


def form_order(settings: EngineSettings, host: Host) -> tuple[Form, ...]:
    """What to take of a repository that has a model in several forms, the best first. Pure.

    For openvino, what is ready comes before what must be converted, and a LoRA adapter needs IR.
    """
    if settings.quantization is not None:
        return ("gguf",)
    wanted = settings.engine if settings.engine != "auto" else next((engine for _, engine in _wishes(settings)), None)
    if wanted is None and "transformers" in host.installed:
        alone = "openvino" not in host.installed
        wanted = "transformers" if alone or _usable_accelerator(settings, host) else None
    if wanted == "transformers":
        return ("safetensors", "gguf", "ir")
    return ("ir", "safetensors", "gguf") if settings.lora is not None else ("ir", "gguf", "safetensors")


def _usable_accelerator(settings: EngineSettings, host: Host) -> str | None:
    return None if settings.device.lower() == "cpu" else host.accelerator


def _by_model(model: ModelFacts, host: Host, accelerator: str | None) -> EngineChoice:
    has_openvino, has_transformers = ("openvino" in host.installed), ("transformers" in host.installed)
    if model.form == "gguf" and not model.openvino_reads_it:
        return EngineChoice("transformers", f"{model}, which OpenVINO's reader does not take")
    if model.form is not None and accelerator and has_transformers:
        return EngineChoice("transformers", f"{model}, on {accelerator}")
    if model.form == "safetensors":
        if model.is_converted and has_openvino:
            return EngineChoice("openvino", f"{model}, converted already, on CPU")
        if has_transformers:
            hint = " (--engine openvino would convert it, once)" if has_openvino else ""
            return EngineChoice("transformers", f"{model}, on CPU{hint}")
        other = f"the transformers engine is not installed ({install_command('transformers')})"
        return EngineChoice("openvino", f"{model}, to be converted: {other}")
    if has_transformers and not has_openvino:
        return EngineChoice("transformers", f"{model}, and openvino is not installed")
    return EngineChoice("openvino", f"{model}, on CPU")


def _wishes(settings: EngineSettings) -> list[tuple[str, EngineName]]:
    """The flags that were given and that only one engine honours."""
    flags: list[tuple[bool, str, EngineName]] = [
        (settings.lora is not None, "--lora", "openvino"),
        (settings.draft_model is not None, "--draft-model", "openvino"),
        (settings.prompt_lookup, "--prompt-lookup", "openvino"),
        (settings.dtype != "auto", f"--dtype {settings.dtype}", "transformers"),
        (settings.max_gpu_memory_gb is not None, "--max-gpu-memory", "transformers"),
    ]
    wishes = [(flag, engine) for given, flag, engine in flags if given]
    if settings.trust_remote_code and settings.engine != "openvino":  # there the conversion may have use for it
        wishes.append(("--trust-remote-code", "transformers"))
    if (engine := device_engine(settings.device)) is not None:
        wishes.append((f"--device {settings.device}", engine))
    return wishes
