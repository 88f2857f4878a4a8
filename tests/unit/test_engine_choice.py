"""Which engine runs what, where, and what a person is told of it."""

from pathlib import Path

import pytest

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.engine_choice import Host, ModelFacts, choose_engine, device_engine, form_order
from chatfleet.worker.host import accelerator
from chatfleet.worker.settings import WorkerSettings

ALL = frozenset({"openvino", "transformers", "simulated"})
NO_TORCH, NO_OPENVINO, NOTHING = ALL - {"transformers"}, ALL - {"openvino"}, frozenset({"simulated"})
GPU = "a CUDA GPU"

BUNDLED = ModelFacts()
IR = ModelFacts("ir", "Qwen2ForCausalLM")
GGUF = ModelFacts("gguf", "qwen2")
OTHER_GGUF = ModelFacts("gguf", "gemma3", openvino_reads_it=False)
SAFETENSORS = ModelFacts("safetensors", "Qwen2ForCausalLM")
CONVERTED = ModelFacts("safetensors", "Qwen2ForCausalLM", is_converted=True)


def settings(**given: object) -> WorkerSettings:
    return WorkerSettings.load(**given)


@pytest.mark.parametrize(
    ("model", "installed", "gpu", "engine", "words"),
    [
        (BUNDLED, ALL, None, "openvino", "bundled"),
        (BUNDLED, ALL, GPU, "openvino", "bundled"),
        (BUNDLED, NO_OPENVINO, None, "transformers", "openvino is not installed"),
        (IR, ALL, None, "openvino", "IR"),
        (IR, ALL, GPU, "openvino", "IR"),
        (GGUF, ALL, None, "openvino", "a GGUF file of qwen2, on CPU"),
        (GGUF, NO_TORCH, GPU, "openvino", "qwen2"),
        (GGUF, NO_OPENVINO, None, "transformers", "openvino is not installed"),
        (GGUF, ALL, GPU, "transformers", GPU),
        (OTHER_GGUF, ALL, None, "transformers", "gemma3"),
        (OTHER_GGUF, ALL, GPU, "transformers", "gemma3"),
        (SAFETENSORS, ALL, GPU, "transformers", GPU),
        (CONVERTED, ALL, GPU, "transformers", GPU),
        (SAFETENSORS, ALL, None, "transformers", "on CPU"),
        (CONVERTED, ALL, None, "openvino", "converted already"),
        (CONVERTED, NO_OPENVINO, None, "transformers", "on CPU"),
        (SAFETENSORS, NO_TORCH, None, "openvino", "engine is not installed"),
        (SAFETENSORS, NO_TORCH, GPU, "openvino", "engine is not installed"),
    ],
)
def test_a_model_is_run_by_what_suits_it_and_the_machine(
    model: ModelFacts, installed: frozenset[str], gpu: str | None, engine: str, words: str
) -> None:
    choice = choose_engine(settings(), model, Host(installed, gpu))
    assert choice.engine == engine
    assert words in choice.reason and "\n" not in choice.reason


@pytest.mark.parametrize(
    ("given", "model", "engine"),
    [
        ({"lora": "adapter"}, SAFETENSORS, "openvino"),
        ({"draft_model": "small.gguf"}, GGUF, "openvino"),
        ({"prompt_lookup": True}, SAFETENSORS, "openvino"),
        ({"trust_remote_code": True}, SAFETENSORS, "transformers"),
        ({"max_gpu_memory_gb": 8}, CONVERTED, "transformers"),
        ({"dtype": "float32"}, CONVERTED, "transformers"),
        ({"device": "cuda:1"}, GGUF, "transformers"),
        ({"device": "GPU"}, SAFETENSORS, "openvino"),
        ({"device": "cpu"}, GGUF, "openvino"),
        ({"deterministic": True}, GGUF, "transformers"),
        ({"engine": "openvino"}, SAFETENSORS, "openvino"),
        ({"engine": "transformers"}, GGUF, "transformers"),
        ({"engine": "simulated"}, BUNDLED, "simulated"),
        ({"engine": "openvino", "trust_remote_code": True}, SAFETENSORS, "openvino"),
    ],
)
def test_what_is_asked_for_decides_first(given: dict[str, object], model: ModelFacts, engine: str) -> None:
    assert choose_engine(settings(**given), model, Host(ALL, GPU)).engine == engine


@pytest.mark.parametrize(
    ("given", "model", "words"),
    [
        ({"lora": "a", "max_gpu_memory_gb": 8}, SAFETENSORS, ("--lora", "--max-gpu-memory")),
        ({"engine": "transformers", "prompt_lookup": True}, SAFETENSORS, ("--prompt-lookup", "--engine transformers")),
        ({"engine": "openvino", "device": "cuda"}, GGUF, ("--device cuda", "transformers")),
        ({"engine": "openvino", "dtype": "float16"}, GGUF, ("--dtype float16", "transformers")),
        ({"engine": "simulated", "lora": "a"}, BUNDLED, ("--lora", "openvino", "simulated")),
        ({"max_gpu_memory_gb": 8}, IR, ("--max-gpu-memory", "IR")),
    ],
)
def test_what_goes_together_with_no_engine_is_refused(
    given: dict[str, object], model: ModelFacts, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        choose_engine(settings(**given), model, Host(ALL))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("given", "model", "installed", "extra"),
    [
        ({}, BUNDLED, NOTHING, "openvino"),
        ({}, GGUF, NOTHING, "openvino"),
        ({}, SAFETENSORS, NOTHING, "openvino"),
        ({}, IR, NO_OPENVINO, "openvino"),
        ({}, OTHER_GGUF, NO_TORCH, "transformers"),
        ({"engine": "transformers"}, SAFETENSORS, NO_TORCH, "transformers"),
        ({"lora": "a"}, SAFETENSORS, NO_OPENVINO, "openvino"),
    ],
)
def test_an_engine_that_is_not_installed_is_named_with_the_command_for_it(
    given: dict[str, object], model: ModelFacts, installed: frozenset[str], extra: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"pip install 'chatfleet\[{extra}\]'"):
        choose_engine(settings(**given), model, Host(installed))


@pytest.mark.parametrize(
    ("given", "host", "first"),
    [
        ({}, Host(ALL), ("ir", "gguf", "safetensors")),
        ({}, Host(ALL, GPU), ("safetensors", "gguf", "ir")),
        ({"device": "cpu"}, Host(ALL, GPU), ("ir", "gguf", "safetensors")),
        ({}, Host(NO_TORCH, GPU), ("ir", "gguf", "safetensors")),
        ({}, Host(NO_OPENVINO), ("safetensors", "gguf", "ir")),
        ({"engine": "transformers"}, Host(ALL), ("safetensors", "gguf", "ir")),
        ({"engine": "openvino"}, Host(ALL, GPU), ("ir", "gguf", "safetensors")),
        ({"lora": "a"}, Host(ALL, GPU), ("ir", "safetensors", "gguf")),
        ({"quantization": "Q8_0"}, Host(ALL, GPU), ("gguf",)),
    ],
)
def test_of_several_forms_the_one_for_the_engine_is_taken(
    given: dict[str, object], host: Host, first: tuple[str, ...]
) -> None:
    assert form_order(settings(**given), host) == first


@pytest.mark.parametrize(
    ("device", "engine"),
    [
        ("auto", None),
        ("cpu", None),
        ("CPU", None),
        ("GPU", "openvino"),
        ("GPU.1", "openvino"),
        ("AUTO:GPU,CPU", "openvino"),
        ("NPU", "openvino"),
        ("cuda", "transformers"),
        ("cuda:1", "transformers"),
        ("mps", "transformers"),
    ],
)
def test_the_name_of_a_device_may_tell_the_engine(device: str, engine: str | None) -> None:
    assert device_engine(device) == engine


@pytest.mark.parametrize(
    ("torch_version", "files", "system", "environment", "found"),
    [
        ("2.13.0", ["nvidia0"], "linux", {}, GPU),
        ("2.13.0+cu130", ["nvidia3"], "linux", {}, GPU),
        ("2.13.0+cpu", ["nvidia0"], "linux", {}, None),
        ("2.13.0", [], "linux", {}, None),
        ("2.13.0", ["nvidiactl"], "linux", {}, None),
        ("2.13.0", ["nvidia0"], "linux", {"CUDA_VISIBLE_DEVICES": ""}, None),
        ("2.13.0", ["dxg"], "linux", {}, GPU),
        ("2.13.0+xpu", ["dri/renderD128"], "linux", {}, "an Intel GPU"),
        ("2.13.0+rocm6.4", ["kfd"], "linux", {}, "an AMD GPU"),
        ("2.13.0+rocm6.4", ["nvidia0"], "linux", {}, None),
        ("2.13.0", [], "darwin", {}, "an Apple GPU"),
    ],
)
def test_a_gpu_counts_where_this_pytorch_can_use_it(
    torch_version: str, files: list[str], system: str, environment: dict[str, str], found: str | None, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert accelerator(torch_version, tmp_path, system, "arm64", environment) == found


def test_two_ways_to_propose_tokens_are_one_too_many() -> None:
    with pytest.raises(ConfigurationError, match=r"--draft-model and --prompt-lookup"):
        settings(draft_model="a", prompt_lookup=True)
