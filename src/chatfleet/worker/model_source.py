"""Where a model's files come from, and what runs them: the wheel, a path or Hugging Face; a GGUF file, safetensors or
OpenVINO IR."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Final

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.template import ChatTemplate
from chatfleet.chat.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer_json
from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.openvino.gguf_header import NotGGUF, read_gguf_header
from chatfleet.engines.openvino.gguf_support import reads
from chatfleet.worker.conversion import Conversions, Original
from chatfleet.worker.engine_choice import EngineChoice, Form, Host, ModelFacts, choose_engine, form_order
from chatfleet.worker.host import look_at_host
from chatfleet.worker.hub import Repository, choose_form, fetch, fetch_text_files, look_up
from chatfleet.worker.model_folder import (
    IR_FILE,
    PICKLES,
    TextFiles,
    architecture,
    check_whole,
    has_pickles_only,
    has_safetensors,
    read_text_files,
)
from chatfleet.worker.output_formats import OutputFormats, choose_formats, grammar_bytes
from chatfleet.worker.settings import EngineName, EngineSettings, WorkerSettings
from chatfleet.worker.tokenizer_files import Tokenizers

logger = logging.getLogger(__name__)

BUNDLED_MODEL: Final = "chatfleet-tiny"
SIMULATED_MODEL: Final = "simulated"


@dataclass(frozen=True)
class ServedModel:
    """All that the worker itself needs of a model; `engine` gets `path` and `draft_path`."""

    names: tuple[str, ...]
    engine: EngineName
    path: Path | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    created: int
    draft_path: Path | None = None
    formats: OutputFormats = field(default_factory=OutputFormats)

    @cached_property
    def visible_token_ids(self) -> frozenset[int]:
        """Control tokens that the formats are written with."""
        return self.formats.visible_token_ids(self.tokenizer)

    @cached_property
    def grammar_bytes(self) -> list[bytes]:
        """What each token is to a grammar."""
        return grammar_bytes(self.tokenizer, self.visible_token_ids)


@dataclass(frozen=True, slots=True)
class Found:
    """A model before its engine is chosen. `path` is a GGUF file or a folder; of a `repository` with safetensors it
    has the small files only."""

    facts: ModelFacts
    path: Path
    repository: Repository | None = None

    @property
    def original(self) -> Original:
        """What a conversion of it is kept under."""
        if self.repository is None:
            return Original.of_folder(self.path)
        return Original(self.repository.repo_id, self.repository.commit)


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
    """Find (and where needed download and convert) the model, choose its engine, read its tokenizer and template.

    Says in one line of the log which engine it is and why. Blocks. Raises ConfigurationError saying what to do.
    """
    name = default_name(settings.model, settings.engine)
    host = look_at_host()
    if settings.engine == "simulated":
        choice = _say(choose_engine(settings, ModelFacts(), host))
        return _served(settings, name, choice.engine, None, TextFiles(ByteTokenizer(), chosen_template("chatml"), {}))
    conversions = Conversions.of(settings)
    found = _find(settings, settings.model, host, conversions)
    choice = _say(choose_engine(settings, found.facts, host))
    path = _runnable(settings, found, choice.engine, conversions)
    draft_path = None
    if settings.draft_model is not None:
        own = {"revision": None, "quantization": None, "lora": None}  # of the model, not of its draft
        draft = _find(settings.model_copy(update=own), settings.draft_model, host, conversions)
        draft_path = _runnable(settings, draft, choice.engine, conversions)
    tokenizers = Tokenizers(conversions.cache, can_make="transformers" in host.installed)
    return _served(settings, name, choice.engine, path, _text_files(found, tokenizers), draft_path)


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


def _say(choice: EngineChoice) -> EngineChoice:
    logger.info("engine %s: %s", choice.engine, choice.reason)
    return choice


def _find(settings: EngineSettings, model: str | None, host: Host, conversions: Conversions) -> Found:
    if model is None:
        return Found(ModelFacts(), bundled_model_path())
    path = _local_path(model)
    if path is not None:
        form = _form_of(path)
        original = Original.of_folder(path) if form == "safetensors" else None
        return Found(_facts(form, path, original, conversions), path)
    repository = look_up(model, settings.revision)
    form = choose_form(repository, form_order(settings, host))
    if form != "safetensors":
        path = fetch(repository, form, settings.quantization)
        return Found(_facts(form, path, None, conversions), path)
    path = fetch_text_files(repository)
    return Found(_facts(form, path, Original(model, repository.commit), conversions), path, repository)


def _form_of(path: Path) -> Form:
    """Raises ConfigurationError where there is no model that we can serve."""
    if path.is_file():
        return "gguf"
    if not path.is_dir():
        raise ConfigurationError(
            f"There is no model at {path}. Give a GGUF file, a model's folder or a Hugging Face id."
        )
    names = [child.name for child in path.iterdir()]
    if IR_FILE in names:
        return "ir"
    if has_safetensors(names):
        return "safetensors"
    if has_pickles_only(names):
        raise ConfigurationError(f"{path} cannot be served: {PICKLES}")
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        raise ConfigurationError(f"{path} is a folder with GGUF files. Give one of them: {path / ggufs[0]}")
    raise ConfigurationError(
        f"{path} holds neither {IR_FILE} nor config.json with *.safetensors. Give a GGUF file, a model's folder or a "
        "Hugging Face id."
    )


def _facts(form: Form, path: Path, original: Original | None, conversions: Conversions) -> ModelFacts:
    if form == "gguf":
        try:
            header = read_gguf_header(path)
        except NotGGUF as exc:
            raise ConfigurationError(f"{path} is not a GGUF file: {exc}. Download or convert it again.") from exc
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror}. Check its permissions.") from exc
        return ModelFacts(form, header.architecture, openvino_reads_it=reads(header))
    is_converted = original is not None and conversions.find(original) is not None
    return ModelFacts(form, architecture(path), is_converted=is_converted)


def _runnable(settings: EngineSettings, found: Found, engine: EngineName, conversions: Conversions) -> Path:
    """What the engine gets: what was found, all of it fetched now, and converted where the engine needs that."""
    if found.facts.form == "ir" and engine == "transformers":
        raise ConfigurationError(
            f"{found.path} is an OpenVINO IR folder, which the transformers engine does not run. Leave --engine "
            "out, or give the model as safetensors."
        )
    if found.facts.form != "safetensors":
        return found.path
    if engine == "openvino" and (kept := conversions.find(found.original)) is not None:
        return kept
    folder = found.path
    if found.repository is not None:
        folder = fetch(found.repository, "safetensors", None, with_code=settings.trust_remote_code)
    check_whole(folder)
    if engine == "openvino":
        return conversions.convert(found.original, folder, found.facts.architecture)
    return folder


def _text_files(found: Found, tokenizers: Tokenizers) -> TextFiles:
    if found.path.is_dir():
        return read_text_files(found.path, tokenizers.for_folder(found.path))
    metadata = read_gguf(found.path)
    variables = {"bos_token": metadata.bos_token or "", "eos_token": metadata.eos_token or ""}
    if metadata.has_known_tokenizer:
        tokenizer = metadata.tokenizer()
    else:
        tokenizer = load_tokenizer_json(tokenizers.for_gguf(metadata), eos_token_ids=metadata.eos_token_ids)
    return TextFiles(tokenizer, metadata.chat_template, variables)


def _served(
    settings: WorkerSettings,
    name: str,
    engine: EngineName,
    path: Path | None,
    text: TextFiles,
    draft_path: Path | None = None,
) -> ServedModel:
    source = chosen_template(settings.chat_template) or text.template
    variables = {**text.variables, **settings.chat_template_kwargs}
    return ServedModel(
        names=tuple(settings.model_names) or (name,),
        engine=engine,
        path=path,
        tokenizer=text.tokenizer,
        template=ChatTemplate(source, variables=variables) if source else None,
        created=int((path or Path(__file__)).stat().st_mtime),
        draft_path=draft_path,
        formats=choose_formats(settings.tool_parser, settings.reasoning_parser, source),
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
