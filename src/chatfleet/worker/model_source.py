"""Where a model's files come from: the wheel, a path, or Hugging Face."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.template import ChatTemplate
from chatfleet.chat.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer_json
from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.settings import WorkerSettings

BUNDLED_MODEL = "chatfleet-tiny"
SIMULATED_MODEL = "simulated"
IR_FILE = "openvino_model.xml"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """All that the worker itself needs of a model; the engine gets `path`."""

    names: tuple[str, ...]
    path: Path | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    created: int


def bundled_model_path() -> Path:
    """The GGUF file inside the package. Raises ConfigurationError where the installation lacks it."""
    path = Path(str(files("chatfleet") / "bundled" / f"{BUNDLED_MODEL}.gguf"))
    if not path.is_file():
        raise ConfigurationError(
            f"The bundled model is missing from this installation ({path}). "
            "Install the chatfleet wheel again, or run `make model` in a checkout."
        )
    return path


def load_served_model(settings: WorkerSettings) -> ServedModel:
    """Find (and where needed download) the model, read its tokenizer and template. Blocks.

    Raises ConfigurationError saying what to do.
    """
    name = default_name(settings.model, settings.engine)
    if settings.engine == "simulated":
        return _served(settings, name, None, ByteTokenizer(), chosen_template("chatml"), {})
    if settings.model is None:
        return _from_gguf(settings, name, bundled_model_path())
    path = _local_path(settings.model)
    if path is None:
        path = download(settings.model, settings.revision, settings.quantization)
    return _from_path(settings, name, path)


def default_name(model: str | None, engine: str) -> str:
    """What a model is served under when it is given no name."""
    if engine == "simulated":
        return model or SIMULATED_MODEL
    if model is None:
        return BUNDLED_MODEL
    path = _local_path(model)
    return model if path is None else path.absolute().name.removesuffix(".gguf")


def _local_path(model: str) -> Path | None:
    """Where the model lies on this machine, if that is meant; None for a Hugging Face id."""
    path = Path(model).expanduser()
    is_path = path.exists() or model.startswith((".", "/", "~")) or model.endswith(".gguf")
    return path if is_path else None


def _from_path(settings: WorkerSettings, name: str, path: Path) -> ServedModel:
    if path.is_file():
        return _from_gguf(settings, name, path)
    if (path / IR_FILE).is_file():
        return _from_ir(settings, name, path)
    if path.is_dir():
        raise ConfigurationError(
            f"{path} holds no {IR_FILE}. The openvino engine takes a GGUF file or an OpenVINO IR folder; "
            f"convert with `optimum-cli export openvino --model {path} OUT` and serve OUT."
        )
    raise ConfigurationError(f"There is no model at {path}. Give a GGUF file, an IR folder or a Hugging Face id.")


def _from_gguf(settings: WorkerSettings, name: str, path: Path) -> ServedModel:
    metadata = read_gguf(path)
    variables = {"bos_token": metadata.bos_token or "", "eos_token": metadata.eos_token or ""}
    return _served(settings, name, path, metadata.tokenizer(), metadata.chat_template, variables)


def _from_ir(settings: WorkerSettings, name: str, path: Path) -> ServedModel:
    config = _read_json(path / "tokenizer_config.json")
    tokenizer_json = path / "tokenizer.json"
    if not tokenizer_json.is_file():
        raise ConfigurationError(f"{path} has no tokenizer.json. Copy it there from the original model's repository.")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    generation = _read_json(path / "generation_config.json")
    eos = generation.get("eos_token_id", _read_json(path / "config.json").get("eos_token_id", []))
    tokenizer = load_tokenizer_json(tokenizer_json, eos_token_ids=eos if isinstance(eos, list) else [eos])
    variables = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return _served(settings, name, path, tokenizer, template, variables)


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not valid JSON ({exc}). Fetch the model's files again.") from exc
    return content if isinstance(content, dict) else {}


def _served(
    settings: WorkerSettings,
    name: str,
    path: Path | None,
    tokenizer: Tokenizer,
    template: str | None,
    variables: dict[str, Any],
) -> ServedModel:
    source = chosen_template(settings.chat_template) or template
    variables = {**variables, **settings.chat_template_kwargs}
    created = int((path or Path(__file__)).stat().st_mtime)
    return ServedModel(
        names=tuple(settings.model_names) or (name,),
        path=path,
        tokenizer=tokenizer,
        template=ChatTemplate(source, variables=variables) if source else None,
        created=created,
    )


def chosen_template(choice: str | None) -> str | None:
    """The template that --chat-template names: a file, or one of ours. Raises ConfigurationError."""
    if choice is None:
        return None
    named = {path.name.removesuffix(".jinja"): path for path in (files("chatfleet.chat") / "templates").iterdir()}
    if choice in named:
        return named[choice].read_text(encoding="utf-8")
    try:
        return Path(choice).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(
            f"--chat-template {choice} is neither a readable file ({exc}) nor one of {', '.join(sorted(named))}."
        ) from exc


def download(repo_id: str, revision: str | None, quantization: str | None) -> Path:
    """Fetch what we can serve of a Hugging Face repository into its cache, with progress on the terminal.

    OpenVINO IR wins over GGUF. Raises ConfigurationError.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        names = HfApi().list_repo_files(repo_id, revision=revision)
        if IR_FILE in names:
            return Path(
                snapshot_download(repo_id, revision=revision, allow_patterns=["openvino_*", "*.json", "*.jinja"])
            )
        return Path(hf_hub_download(repo_id, choose_gguf(repo_id, names, quantization), revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise ConfigurationError(
            f"{repo_id!r} is no file or folder here, and fetching it from Hugging Face failed: "
            f"{str(exc).strip().splitlines()[0]}. Check the id and the network; HF_TOKEN is needed for gated models."
        ) from exc


_PREFERRED = ("Q8_0", "F16", "Q6_K", "Q4_K_M", "Q4_0")


def choose_gguf(repo_id: str, names: list[str], quantization: str | None) -> str:
    """The GGUF file that `quantization` names, or the best that the openvino engine reads. Pure."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    if not ggufs:
        raise ConfigurationError(
            f"{repo_id} has neither {IR_FILE} nor a GGUF file. Choose a repository that has one of them."
        )
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
