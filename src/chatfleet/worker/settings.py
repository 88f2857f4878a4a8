"""How a worker is set up."""

import json
from typing import Any, Literal

from pydantic import field_validator

from chatfleet.core.access import FleetMember
from chatfleet.core.fleet import MAX_MODEL_ID_CHARS, BaseUrl, Speed
from chatfleet.core.settings import Settings, setting
from chatfleet.engines.base import EngineConfig

_MODEL, _NETWORK, _LIMITS, _SIMULATED = "Model", "Network", "Limits", "Simulated engine"
_FLEET, _RELIABILITY = "Fleet", "When things fail"


class EngineSettings(Settings):
    """What a worker and `chatfleet serve` let one say of models and engines."""

    model_names: list[str] = setting([], "Name to serve it under; repeatable.", _MODEL, flag="--model-name")
    engine: Literal["openvino", "simulated"] = setting("openvino", "What runs the model.", _MODEL)
    revision: str | None = setting(None, "Branch, tag or commit on Hugging Face.", _MODEL)
    quantization: str | None = setting(None, "Which GGUF file of a repository, such as Q8_0.", _MODEL)
    chat_template: str | None = setting(None, "A Jinja file, or a template of ours, such as chatml.", _MODEL)
    chat_template_kwargs: dict[str, Any] = setting({}, "JSON object of variables for the template.", _MODEL)
    device: str = setting("auto", "OpenVINO device: auto, CPU, GPU, ...", _MODEL)
    deterministic: bool = setting(False, "Compute in f32: the same tokens alone and batched.", _MODEL)
    context_length: int | None = setting(None, "Allow fewer tokens than the model can.", _LIMITS, ge=1)
    kv_cache_gb: float | None = setting(None, "Size of the KV cache; default: from free memory.", _LIMITS, gt=0)
    memory_share: float = setting(
        1.0, "Part of the free memory to reckon with; `serve` divides it among its workers.", _LIMITS, gt=0, le=1
    )
    max_concurrency: int = setting(64, "Choices generated at once.", _LIMITS, ge=1, le=4096)
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

    def engine_config(self, model_path: str | None) -> EngineConfig:
        return EngineConfig(
            engine=self.engine,
            model_path=model_path,
            context_length=self.context_length,
            kv_cache_gb=self.kv_cache_gb,
            memory_share=self.memory_share,
            max_concurrency=self.max_concurrency,
            device=self.device,
            deterministic=self.deterministic,
            sim_ttft_ms=self.sim_ttft_ms,
            sim_itl_ms=self.sim_itl_ms,
            sim_failure_rate=self.sim_failure_rate,
        )


class WorkerSettings(EngineSettings, FleetMember):
    model: str | None = setting(
        None, "GGUF file, OpenVINO IR folder or Hugging Face id. Without it: the bundled model.", _MODEL
    )
    host: str = setting("127.0.0.1", "Address to listen on; beyond loopback only with a fleet token.", _NETWORK)
    port: int = setting(21002, "Port to listen on; 0 takes a free one.", _NETWORK, ge=0, le=65535)
    advertise_url: BaseUrl | None = setting(
        None, "How gateways reach this worker. Default: found out from --host and the controller.", _NETWORK
    )
    speed: Speed = setting(1.0, "How fast it is beside other workers of its models: 2 gets twice the requests.", _FLEET)
