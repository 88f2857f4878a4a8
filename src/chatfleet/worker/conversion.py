"""Safetensors to OpenVINO IR, once: made by optimum-intel, kept for every later start."""

import os
import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.cache import cache_folder, entry_name, make_once
from chatfleet.worker.conversion_tools import OPTIMUM, TOOLS_BYTES, ConversionTools, clean_environment
from chatfleet.worker.model_folder import IR_FILE
from chatfleet.worker.settings import EngineSettings, WeightFormat
from chatfleet.worker.steps import StepFailed, run_step

_SPACE_FACTOR: Final = 2.2
"""Free space that a conversion takes per byte of the weights: they are written as they are, and then compressed."""

_UNSUPPORTED: Final = (
    "custom or unsupported architecture",
    "does not recognize this architecture",
    "only supports the tasks",
)
"""What its exporter says of a model that it does not know."""


@dataclass(frozen=True, slots=True)
class Original:
    """The safetensors that a conversion is made of: a Hugging Face id at a commit, or a folder as its files are now."""

    name: str
    version: str

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return cls(str(folder.resolve()), blake2b(repr(stats).encode(), digest_size=16).hexdigest())


@dataclass(frozen=True, slots=True)
class Conversions:
    """Those of one weight format, under the folder `cache`."""

    cache: Path
    weight_format: WeightFormat
    tools: ConversionTools
    trust_remote_code: bool = False

    @classmethod
    def of(cls, settings: EngineSettings) -> Self:
        """Raises ConfigurationError."""
        cache = cache_folder(settings.cache)
        tools = ConversionTools(cache, settings.conversion_torch)
        return cls(cache, settings.weight_format, tools, settings.trust_remote_code)

    def find(self, original: Original) -> Path | None:
        """The IR folder that was made of it, if one was."""
        entry = self._entry(original)
        return entry if _is_whole(entry) else None

    def convert(self, original: Original, folder: Path, architecture: str) -> Path:
        """The IR folder made of the safetensors in `folder`, of an architecture such as Qwen2ForCausalLM.

        Takes minutes the first time, and several gigabytes for the tools. Raises ConfigurationError. Interrupted, it
        leaves nothing that is taken for a conversion.
        """
        return make_once(
            self._entry(original), lambda unfinished: self._make(folder, unfinished, architecture), is_whole=_is_whole
        )

    def _entry(self, original: Original) -> Path:
        name = f"{Path(original.name).name}-{self.weight_format}"
        return self.cache / "converted" / entry_name(name, original.name, original.version, self.weight_format, OPTIMUM)

    def _make(self, source: Path, unfinished: Path, architecture: str) -> None:
        self._check_space(source)
        python = self.tools.python()
        scratch, log = unfinished / "scratch", unfinished.with_suffix(".log")
        scratch.mkdir()
        command = [str(python), "-I", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(source), "--task", "text-generation-with-past"]
        command += ["--weight-format", self.weight_format]
        command += ["--trust-remote-code"] if self.trust_remote_code else []
        environment = {**clean_environment(os.environ), "TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1"}
        title = f"Converting {architecture or 'the model'} to OpenVINO with {self.weight_format} weights"
        try:
            run_step(title, [*command, str(unfinished)], environment=environment, log=log)
        except StepFailed as exc:
            raise ConfigurationError(_failure(source, architecture, exc, log)) from exc
        shutil.rmtree(scratch)
        if not _is_whole(unfinished):
            raise ConfigurationError(
                f"Converting {source} made no {IR_FILE}. The output is in {log}. Serve it with --engine transformers."
            )

    def _check_space(self, source: Path) -> None:
        weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        needed = int(weights * _SPACE_FACTOR) + (0 if self.tools.is_made else TOOLS_BYTES)
        free = shutil.disk_usage(self.cache).free
        if free < needed:
            raise ConfigurationError(
                f"Converting {source} takes up to {needed / 1e9:.1f} GB in {self.cache}, where {free / 1e9:.1f} GB are "
                "free. Free some, name another folder with --cache, or serve it with --engine transformers."
            )


def _is_whole(folder: Path) -> bool:
    return (folder / IR_FILE).is_file() and (folder / IR_FILE).with_suffix(".bin").is_file()


def _failure(source: Path, architecture: str, failed: StepFailed, log: Path) -> str:
    if any(words in failed.output for words in _UNSUPPORTED):
        return (
            f"optimum-intel, which converts models for the openvino engine, does not know {architecture}. Serve it "
            "with --engine transformers."
        )
    return (
        f"Converting {source} to OpenVINO failed: {failed.reason} The whole output is in {log}. Serve it with "
        "--engine transformers, or convert it elsewhere and serve the folder."
    )
