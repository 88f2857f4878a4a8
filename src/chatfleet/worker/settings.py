"""How a worker is set up."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from chatfleet.core.access import FleetMember
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.fleet import MAX_MODEL_ID_CHARS, BaseUrl, Speed
from chatfleet.core.settings import Settings, setting
from chatfleet.engines.base import EngineConfig

_MODEL, _ENGINE, _CONVERSION = "Model", "Engine", "Conversion of safetensors"
_PROPOSALS = "Speculative decoding (openvino)"
_NETWORK, _LIMITS, _SIMULATED = "Network", "Limits", "Simulated engine"
_FLEET, _RELIABILITY = "Fleet", "When things fail"

EngineName = Literal["openvino", "transformers", "simulated"]
WeightFormat = Literal["int4", "int8", "fp16"]


class EngineSettings(Settings):
    """What a worker and `chatfleet serve` let one say of models and engines."""

    model_names: list[str] = setting([], "Name to serve it under; repeatable.", _MODEL, flag="--model-name")
    revision: str | None = setting(None, "Branch, tag or commit on Hugging Face.", _MODEL)
    quantization: str | None = setting(None, "Which GGUF file of a repository, such as Q8_0.", _MODEL)
    lora: str | None = setting(None, "LoRA adapter (PEFT folder or safetensors file) of all requests.", _MODEL)
    chat_template: str | None = setting(None, "A Jinja file, or a template of ours, such as chatml.", _MODEL)
    chat_template_kwargs: dict[str, Any] = setting({}, "JSON object of variables for the template.", _MODEL)
    tool_parser: str = setting("auto", "How the model writes tool calls; auto finds it from the template.", _MODEL)
    reasoning_parser: str = setting("auto", "How it writes its reasoning; auto finds it likewise.", _MODEL)
    engine: Literal["auto", "openvino", "transformers", "simulated"] = setting(
        "auto", "What runs the model; auto says why.", _ENGINE
    )
    device: str = setting(
        "auto", "For openvino: CPU, GPU, GPU.1. For transformers: cpu, cuda, cuda:1, xpu, mps.", _ENGINE
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto", "What to compute in (transformers).", _ENGINE
    )
    deterministic: bool = setting(False, "Compute in f32: the same tokens alone and batched.", _ENGINE)
    max_gpu_memory_gb: float | None = setting(
        None, "GB of each GPU for weights and KV cache (transformers).", _ENGINE, flag="--max-gpu-memory", gt=0
    )
    trust_remote_code: bool = setting(False, "Run Python code out of the model's folder (transformers).", _ENGINE)
    draft_model: str | None = setting(None, "A smaller model of the same vocabulary that proposes tokens.", _PROPOSALS)
    prompt_lookup: bool = setting(False, "Propose what followed the last tokens earlier in the text.", _PROPOSALS)
    num_assistant_tokens: int = setting(4, "How many tokens to propose at a time.", _PROPOSALS, ge=1, le=16)
    weight_format: WeightFormat = setting("int8", "Of safetensors converted for openvino.", _CONVERSION)
    conversion_torch: str = setting("torch==2.13.0", "The PyTorch that converts them, as pip is told.", _CONVERSION)
    cache: Path | None = setting(None, "Folder for what is made. Default: ~/.cache/chatfleet.", _CONVERSION)
    context_length: int | None = setting(None, "Allow fewer tokens than the model can.", _LIMITS, ge=1)
    kv_cache_gb: float | None = setting(None, "Size of the KV cache; default: from free memory.", _LIMITS, gt=0)
    memory_share: float = setting(
        1.0, "Part of the free memory to reckon with; `serve` divides it among its workers.", _LIMITS, gt=0, le=1
    )
    max_concurrency: int = setting(64, "Choices generated at once.", _LIMITS, ge=1, le=4096)
    max_num_batched_tokens: int | None = setting(
        None, "Tokens computed in one step; more read prompts faster, and let others wait longer.", _LIMITS, ge=16
    )
    max_queue: int = setting(1024, "Choices that may wait; past it 429.", _LIMITS, ge=0)
    strict: bool = setting(False, "Refuse request fields that nobody knows.", _LIMITS)
    drain_timeout: float = setting(
        30.0, "Seconds that requests get to finish in when the worker is told to stop.", _RELIABILITY, ge=0, le=86400
    )
    sim_ttft_ms: float = setting(0.0, "Time to the first token.", _SIMULATED, ge=0)
    sim_itl_ms: float = setting(0.0, "Time between tokens.", _SIMULATED, ge=0)
    sim_failure_rate: float = setting(0.0, "Share of requests that fail.", _SIMULATED, ge=0, le=1)

    @field_validator("model_names")
    @classmethod
    def _usable(cls, names: list[str]) -> list[str]:
        if any(not 0 < len(name) <= MAX_MODEL_ID_CHARS for name in names):
            raise ValueError(f"a name has 1 to {MAX_MODEL_ID_CHARS} characters")
        return names

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_proposer(self) -> Self:
        if self.draft_model is not None and self.prompt_lookup:
            raise ConfigurationError(
                "--draft-model and --prompt-lookup both propose tokens, and only one of them can. Give one."
            )
        return self

    def engine_config(
        self,
        engine: str,
        model_path: Path | None,
        draft_model_path: Path | None = None,
        token_bytes: list[bytes] | None = None,
    ) -> EngineConfig:
        """For the engine that was chosen, with the files that the settings lead to."""
        return EngineConfig(
            engine=engine,
            model_path=None if model_path is None else str(model_path),
            context_length=self.context_length,
            kv_cache_gb=self.kv_cache_gb,
            memory_share=self.memory_share,
            max_concurrency=self.max_concurrency,
            max_num_batched_tokens=self.max_num_batched_tokens,
            device=self.device,
            dtype=self.dtype,
            deterministic=self.deterministic,
            max_gpu_memory_gb=self.max_gpu_memory_gb,
            trust_remote_code=self.trust_remote_code,
            draft_model_path=None if draft_model_path is None else str(draft_model_path),
            prompt_lookup=self.prompt_lookup,
            num_assistant_tokens=self.num_assistant_tokens,
            lora_path=self.lora,
            token_bytes=token_bytes,
            sim_ttft_ms=self.sim_ttft_ms,
            sim_itl_ms=self.sim_itl_ms,
            sim_failure_rate=self.sim_failure_rate,
        )


class WorkerSettings(EngineSettings, FleetMember):
    model: str | None = setting(
        None,
        "GGUF file, folder (safetensors or OpenVINO IR) or Hugging Face id. Without it: the bundled model.",
        _MODEL,
    )
    host: str = setting("127.0.0.1", "Address to listen on; beyond loopback only with a fleet token.", _NETWORK)
    port: int = setting(21002, "Port to listen on; 0 takes a free one.", _NETWORK, ge=0, le=65535)
    advertise_url: BaseUrl | None = setting(
        None, "How gateways reach this worker. Default: found out from --host and the controller.", _NETWORK
    )
    speed: Speed = setting(1.0, "How fast it is beside other workers of its models: 2 gets twice the requests.", _FLEET)
