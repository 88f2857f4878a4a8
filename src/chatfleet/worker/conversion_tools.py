"""optimum-intel in a virtual environment of its own: it wants older libraries than the engines do."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.cache import entry_name, make_once
from chatfleet.worker.steps import StepFailed, run_step

OPTIMUM: Final = "optimum-intel[openvino]==2.2.0"
TOOLS_BYTES: Final = 3_000_000_000
"""Free space that making the environment takes: 1.6 GB with a CPU build of PyTorch, and the wheels in passing."""

_TORCH_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True, slots=True)
class ConversionTools:
    """`torch` is the requirement of the PyTorch that converts, as pip takes it."""

    cache: Path
    torch: str

    @property
    def _entry(self) -> Path:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.cache / "tools" / entry_name("optimum-intel", OPTIMUM, self.torch, python, sys.base_prefix)

    @property
    def is_made(self) -> bool:
        return _has_python(self._entry)

    def python(self) -> Path:
        """The interpreter that has them; the first call makes the environment. Raises ConfigurationError."""
        return make_once(self._entry, self._make, is_whole=_has_python) / "bin" / "python"

    def _make(self, folder: Path) -> None:
        log = self._entry.with_suffix(".log")
        pip = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
        constraint = folder / "constraints.txt"
        steps: list[tuple[str, list[str]]] = [
            ("Making an environment for conversions", [sys.executable, "-I", "-m", "venv", str(folder)]),
            # PyPI's build for Linux brings gigabytes of CUDA; PyTorch's own index has one for CPUs.
            (f"Installing {self.torch}", [*pip, "--retries", "1", "--extra-index-url", _TORCH_CPU_INDEX, self.torch]),
            (f"Installing {OPTIMUM}", [*pip, "--constraint", str(constraint), OPTIMUM]),
            # It is required for models that see; PyPI's does not go with a CPU build, and breaks every import then.
            ("Removing torchvision", [pip[0], "-I", "-m", "pip", "uninstall", "--yes", "torchvision"]),
        ]
        for title, command in steps:
            try:
                run_step(title, command, environment=clean_environment(os.environ), log=log)
            except StepFailed as exc:
                raise ConfigurationError(
                    f"{title} failed: {exc.reason} The whole output is in {log}. Conversion needs the network "
                    "once; without it, convert elsewhere (optimum-cli export openvino --model MODEL FOLDER) and serve "
                    "the folder, or serve the model with --engine transformers."
                ) from exc
            constraint.write_text(f"{self.torch}\n", encoding="utf-8")


def _has_python(folder: Path) -> bool:
    """False too where it was made with a Python that is gone."""
    return (folder / "bin" / "python").exists()


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would have another Python find our packages."""
    return {name: value for name, value in environment.items() if not name.startswith(("PYTHON", "CHATFLEET_"))}
