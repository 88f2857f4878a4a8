"""A model's folder as Hugging Face lays it out: what it holds, its tokenizer, its chat template."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chatfleet.chat.tokenizer import Tokenizer, load_tokenizer_json
from chatfleet.core.errors import ConfigurationError

IR_FILE: Final = "openvino_model.xml"
TOKENIZER_FILE: Final = "tokenizer.json"
OTHER_TOKENIZERS: Final = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
_TEMPLATE_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class TextFiles:
    """What the worker makes text of and tokens from. `variables` are for the template."""

    tokenizer: Tokenizer
    template: str | None
    variables: dict[str, str]


def has_safetensors(names: Iterable[str]) -> bool:
    """Whether a list of file names is that of a model in safetensors."""
    top = {name for name in names if "/" not in name}
    return "config.json" in top and any(name.endswith(".safetensors") and "adapter" not in name for name in top)


def has_pickles_only(names: Iterable[str]) -> bool:
    """Whether the weights are in files that run code when they are read."""
    top = [name for name in names if "/" not in name and name != "training_args.bin"]
    return any(name.endswith(_PICKLES) for name in top) and not any(name.endswith(".safetensors") for name in top)


PICKLES: Final = (
    "its weights are in .bin or .pt files, which can run any code when they are read, so they are not taken. Choose a "
    "repository with *.safetensors, or convert them: load the model with transformers where you trust it, and "
    "`model.save_pretrained(FOLDER)`."
)


def architecture(folder: Path) -> str:
    """Such as Qwen2ForCausalLM, as config.json says; "" where it does not. Raises ConfigurationError."""
    config = read_json(folder / "config.json")
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type", ""))


def check_whole(folder: Path) -> None:
    """Raises ConfigurationError when a part of the weights is missing that the index names."""
    weights = read_json(folder / _INDEX).get("weight_map")
    names = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"{folder} is not whole: {len(missing)} of {len(names)} files with weights are missing, such as "
            f"{missing[0]}. Fetch the model again."
        )


def read_text_files(folder: Path, tokenizer_json: Path) -> TextFiles:
    """The tokenizer of `tokenizer_json` with the rest of what `folder` says. Raises ConfigurationError."""
    config = read_json(folder / "tokenizer_config.json")
    tokenizer = load_tokenizer_json(tokenizer_json, eos_token_ids=_eos_token_ids(folder))
    special = read_json(folder / "special_tokens_map.json") | {k: v for k, v in config.items() if v is not None}
    return TextFiles(
        tokenizer=tokenizer,
        template=_template(folder, config),
        variables={name: _token_text(special.get(name)) for name in _TEMPLATE_TOKENS},
    )


def _eos_token_ids(folder: Path) -> list[int]:
    """Those that generation ends at; config.json has them where generation_config.json has none."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name).get("eos_token_id")
        if given is not None:
            return [int(token_id) for token_id in (given if isinstance(given, list) else [given])]
    text = read_json(folder / "config.json").get("text_config")
    given = text.get("eos_token_id") if isinstance(text, dict) else None
    return [] if given is None else [int(token_id) for token_id in (given if isinstance(given, list) else [given])]


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """transformers' order: a Jinja file, chat_template.json, tokenizer_config.json."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where there is no file or no object in it. Raises ConfigurationError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not valid JSON ({exc}). Fetch the model's files again.") from exc
    return content if isinstance(content, dict) else {}
