"""A tokenizer.json for models that come without one, made by transformers in a process of its own."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatfleet.chat.gguf import GGUFMetadata
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.subprocesses import child_environment
from chatfleet.engines.registry import install_command
from chatfleet.worker.cache import entry_name, make_once
from chatfleet.worker.model_folder import OTHER_TOKENIZERS, TOKENIZER_FILE
from chatfleet.worker.steps import StepFailed, run_step

_MODULE: Final = "chatfleet.engines.transformers.save_tokenizer"


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """Those that were made, under the folder `cache`. `can_make` says whether transformers is installed."""

    cache: Path
    can_make: bool

    def for_folder(self, folder: Path) -> Path:
        """The tokenizer.json of a model's folder. Raises ConfigurationError. Blocks."""
        ready = folder / TOKENIZER_FILE
        if ready.is_file():
            return ready
        others = [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
        if not others:
            raise ConfigurationError(
                f"{folder} has no {TOKENIZER_FILE}. Copy it there from the original model's repository."
            )
        return self._made(folder / others[0], f"{folder} has no {TOKENIZER_FILE}, but {others[0]}", str(folder))

    def for_gguf(self, metadata: GGUFMetadata) -> Path:
        """One for a GGUF file whose own vocabulary the worker does not read. Raises ConfigurationError. Blocks."""
        kind, split = metadata.tokenizer_kind
        problem = f"{metadata.path} has a tokenizer that the worker does not read (model {kind!r}, split {split!r})"
        return self._made(metadata.path, problem, str(metadata.path.parent), metadata.path.name)

    def _made(self, source: Path, problem: str, *arguments: str) -> Path:
        if not self.can_make:
            raise ConfigurationError(
                f"{problem}. transformers can make one of it: {install_command('transformers')}. Or copy a "
                f"{TOKENIZER_FILE} of the same model beside it, and serve that folder."
            )
        stat = source.stat()
        key = entry_name(source.name, str(source.resolve()), str(stat.st_size), str(stat.st_mtime_ns))

        def make(folder: Path) -> None:
            command = [sys.executable, "-P", "-m", _MODULE, str(folder), *arguments]
            log = folder.with_suffix(".log")
            environment = {**os.environ, **child_environment(), "HF_HUB_OFFLINE": "1"}
            try:
                run_step(f"Making a {TOKENIZER_FILE} from {source.name}", command, environment=environment, log=log)
            except StepFailed as exc:
                raise ConfigurationError(
                    f"{problem}, and transformers could not make one: {exc.reason} Copy a {TOKENIZER_FILE} of the "
                    "same model there."
                ) from exc

        return make_once(self.cache / "tokenizers" / key, make) / TOKENIZER_FILE
