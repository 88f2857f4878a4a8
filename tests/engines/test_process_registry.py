import subprocess
import sys

import pytest

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import EngineConfig
from chatfleet.engines.registry import BACKENDS, BackendEntry, backend_path, create_backend
from chatfleet.engines.simulated import SimulatedBackend


def test_an_unknown_engine_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no engine 'vlm'.*openvino, simulated"):
        backend_path("vlm")


def test_an_import_path_is_no_engine_name() -> None:
    with pytest.raises(ConfigurationError):
        backend_path("chatfleet.engines.simulated:SimulatedBackend")


def test_makes_the_named_backend() -> None:
    backend = create_backend(backend_path("simulated"), EngineConfig(engine="simulated"))
    assert isinstance(backend, SimulatedBackend)


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "needs_a_package.py").write_text("import no_such_package.inner\n")
    monkeypatch.syspath_prepend(str(folder))
    entry = BackendEntry("needs_a_package:Backend", extra="openvino", requires=("no_such_package",))
    monkeypatch.setitem(BACKENDS, "needy", entry)
    with pytest.raises(ConfigurationError, match=r"pip install 'chatfleet\[openvino\]'"):
        create_backend(backend_path("needy"), EngineConfig(engine="needy"))


def test_another_import_error_is_not_taken_for_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "has_a_fault.py").write_text("import chatfleet.no_such_module\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(BACKENDS, "faulty", BackendEntry("has_a_fault:Backend", extra="openvino"))
    with pytest.raises(ModuleNotFoundError, match="chatfleet.no_such_module"):
        create_backend(backend_path("faulty"), EngineConfig(engine="faulty"))


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(TypeError, match="dict, not a Backend"):
        create_backend("msgspec.structs:asdict", EngineConfig(engine="simulated"))


def test_the_worker_side_imports_no_engine_library() -> None:
    code = (
        "import sys, chatfleet.engines.process\n"
        "heavy = {'torch', 'transformers', 'openvino', 'openvino_genai', 'numpy'} & sys.modules.keys()\n"
        "simulated = {name for name in sys.modules if name.startswith('chatfleet.engines.simulated')}\n"
        "sys.exit(str(heavy | simulated) if heavy or simulated else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
