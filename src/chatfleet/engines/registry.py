"""Engine names and where their backends are. Resolved in the worker, imported in the engine process alone."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, NamedTuple

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import Backend, EngineConfig


class BackendEntry(NamedTuple):
    """`path` is "module:attribute" of a callable from EngineConfig to Backend; `extra` is the package extra that
    brings what it imports, `requires` the top-level modules that come with it. `environment` is what its process gets,
    unless the user has set these variables."""

    path: str
    extra: str | None = None
    requires: tuple[str, ...] = ()
    environment: Mapping[str, str] = MappingProxyType({})


BACKENDS: Final[dict[str, BackendEntry]] = {
    "openvino": BackendEntry(
        "chatfleet.engines.openvino.backend:OpenVINOBackend",
        extra="openvino",
        requires=("openvino_genai", "openvino", "openvino_tokenizers", "gguf", "numpy"),
    ),
    "transformers": BackendEntry(
        "chatfleet.engines.transformers.backend:TransformersBackend",
        extra="transformers",
        requires=("torch", "transformers", "accelerate", "gguf", "numpy", "safetensors"),
        # Large pages for weights: a decoding step of a 0.39B model on a CPU takes 53.5 ms with them, 58 without.
        environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    ),
    "simulated": BackendEntry("chatfleet.engines.simulated:SimulatedBackend"),
}


def is_installed(engine: str) -> bool:
    """Whether all packages that a known engine needs are there. Imports none of them."""
    return all(find_spec(module) is not None for module in BACKENDS[engine].requires)


def install_command(engine: str) -> str:
    """What to type for the packages that a known engine needs."""
    extra = BACKENDS[engine].extra
    return f"pip install 'chatfleet[{extra}]'" if extra else "pip install chatfleet"


def environment_of(engine: str) -> dict[str, str]:
    """Variables that the process of an engine starts with; none for an engine that nobody knows."""
    entry = BACKENDS.get(engine)
    return {} if entry is None else dict(entry.environment)


def backend_path(engine: str) -> str:
    """Where the named engine's backend is. Raises ConfigurationError for a name nobody knows."""
    if engine not in BACKENDS:
        raise ConfigurationError(f"There is no engine {engine!r}. Engines: {', '.join(sorted(BACKENDS))}.")
    return BACKENDS[engine].path


def create_backend(path: str, config: EngineConfig) -> Backend:
    """Import the backend at `path` ("module:attribute") and load it. Call it in the engine process only.

    Raises ConfigurationError naming the package extra to install when the backend's libraries are missing, and
    whatever the backend raises.
    """
    module_name, _, attribute = path.partition(":")
    entry = next((entry for entry in BACKENDS.values() if entry.path == path), BackendEntry(path))
    try:
        factory = getattr(import_module(module_name), attribute)
        backend = factory(config)
    except ImportError as exc:
        missing = (exc.name or "").partition(".")[0]
        if entry.extra is None or missing not in entry.requires:
            raise
        raise ConfigurationError(
            f"The engine {config.engine!r} needs the package {missing}, which is not usable here ({exc}). "
            f"Install it: {install_command(config.engine)}"
        ) from exc
    if not isinstance(backend, Backend):
        raise TypeError(f"{path} made a {type(backend).__name__}, not a Backend")
    return backend
