"""Engine names and where their backends are. Resolved in the worker, imported in the engine process alone."""

from importlib import import_module
from typing import Final, NamedTuple

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import Backend, EngineConfig


class BackendEntry(NamedTuple):
    """`path` is "module:attribute" of a callable from EngineConfig to Backend; `extra` is the package extra that
    brings what it imports, `requires` the top-level modules that come with it."""

    path: str
    extra: str | None = None
    requires: tuple[str, ...] = ()


BACKENDS: Final[dict[str, BackendEntry]] = {
    "openvino": BackendEntry(
        "chatfleet.engines.openvino.backend:OpenVINOBackend",
        extra="openvino",
        requires=("openvino_genai", "openvino", "openvino_tokenizers", "gguf", "numpy"),
    ),
    "simulated": BackendEntry("chatfleet.engines.simulated:SimulatedBackend"),
}


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
            f"Install it: pip install 'chatfleet[{entry.extra}]'"
        ) from exc
    if not isinstance(backend, Backend):
        raise TypeError(f"{path} made a {type(backend).__name__}, not a Backend")
    return backend
