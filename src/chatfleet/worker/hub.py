"""Models on Hugging Face: what a repository has, and what of it is fetched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.engine_choice import Form
from chatfleet.worker.model_folder import IR_FILE, PICKLES, has_pickles_only, has_safetensors

_TEXT_FILES: Final = ("*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
_NOT_WANTED: Final = ("*/*", "consolidated*")
"""Other forms of the same model, and examples: what lies in folders, and the weights once more under other names."""

_CONFIG: Final = "config.json"
_PREFERRED: Final = ("Q8_0", "F16", "Q6_K", "Q4_K_M", "Q4_0")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it is at `revision` (None: its main branch), which is `commit` now. `names` are its files.

    Files are fetched by the revision: only so does the cache know, offline, which commit it was.
    """

    repo_id: str
    revision: str | None
    commit: str
    names: tuple[str, ...]


def look_up(repo_id: str, revision: str | None) -> Repository:
    """Ask the hub what a repository has; where it cannot be reached, what was fetched of it before.

    Raises ConfigurationError. Blocks.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with _explained(repo_id):
        try:
            info = HfApi().model_info(repo_id, revision=revision)
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:  # of the network, or of HF_HUB_OFFLINE
            kept = _fetched_before(repo_id, revision)
            if kept is None:
                raise
            return kept
        names = tuple(file.rfilename for file in info.siblings or ())
        return Repository(repo_id, revision, info.sha or "main", names)


def _fetched_before(repo_id: str, revision: str | None) -> Repository | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # with no pattern it would miss what we never fetch
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None
    names = tuple(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Repository(repo_id, revision, folder.name, names)


def choose_form(repository: Repository, order: Sequence[Form]) -> Form:
    """The first form in `order` that the repository has its model in. Pure. Raises ConfigurationError."""
    names = repository.names
    there: dict[Form, bool] = {
        "ir": IR_FILE in names,
        "gguf": any(name.lower().endswith(".gguf") for name in names),
        "safetensors": has_safetensors(names),
    }
    for form in order:
        if there[form]:
            return form
    if any(there.values()):
        raise ConfigurationError(f"{repository.repo_id} has no GGUF file, of which --quantization would choose one.")
    if has_pickles_only(names):
        raise ConfigurationError(f"{repository.repo_id} cannot be served: {PICKLES}")
    raise ConfigurationError(
        f"{repository.repo_id} has no model that we can serve: neither {IR_FILE} nor a GGUF file nor {_CONFIG} with "
        "*.safetensors. Choose a repository that has one of them."
    )


def fetch(repository: Repository, form: Form, quantization: str | None, *, with_code: bool = False) -> Path:
    """The files of one form, in Hugging Face's cache, with progress on the terminal: a GGUF file, or a folder.

    Python files come only `with_code`. Raises ConfigurationError. Blocks.
    """
    if form == "gguf":
        return _fetch_file(repository, choose_gguf(repository.repo_id, repository.names, quantization))
    weights = ("openvino_*",) if form == "ir" else ("*.safetensors",)
    code = ("*.py",) if with_code and form == "safetensors" else ()
    return _fetch_folder(repository, (*_TEXT_FILES, *weights, *code))


def fetch_text_files(repository: Repository) -> Path:
    """A folder with what is small: configuration, tokenizer, template. Raises ConfigurationError. Blocks."""
    return _fetch_folder(repository, _TEXT_FILES)


def _fetch_file(repository: Repository, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(repository.repo_id):
        return Path(hf_hub_download(repository.repo_id, name, revision=repository.revision))


def _fetch_folder(repository: Repository, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(repository.repo_id):
        return Path(
            snapshot_download(
                repository.repo_id,
                revision=repository.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_WANTED),
            )
        )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # also those of the HTTP library beneath, which is another from version to version
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ConfigurationError(
            f"{repo_id!r} is no file or folder here, and fetching it from Hugging Face failed: {reason}. Check the id "
            "and the network; HF_TOKEN is needed for gated models."
        ) from exc


def choose_gguf(repo_id: str, names: tuple[str, ...], quantization: str | None) -> str:
    """The GGUF file that `quantization` names, or the best that the openvino engine reads. Pure."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    for wanted in [quantization] if quantization else _PREFERRED:
        for name in ggufs:
            if wanted.lower() in name.lower():
                return name
    if quantization is None and len(ggufs) == 1:
        return ggufs[0]
    raise ConfigurationError(
        f"{repo_id} has no GGUF file for {quantization or 'any of ' + ', '.join(_PREFERRED)}: "
        f"{', '.join(ggufs[:20])}. Choose one with --quantization."
    )
