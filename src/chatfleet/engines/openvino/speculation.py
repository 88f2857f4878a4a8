"""Speculative decoding: tokens that are proposed cheaply and checked by the model, several in one step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import EngineConfig
from chatfleet.engines.openvino.model_files import FOLDER_PREFIX, ModelInfo, inspect_model, ir_folder

MAX_ASSISTANT_TOKENS = 16
_LOOKUP_NGRAM = 3
"""The most last tokens that prompt lookup looks for."""


@dataclass(frozen=True)
class Speculation:
    """`tokens` are proposed at a time, by `draft` or, where that is None, by prompt lookup."""

    tokens: int
    draft: ModelInfo | None

    def settings(self, *, is_greedy: bool) -> dict[str, Any]:
        """The attributes of a `GenerationConfig`.

        What a draft proposed is accepted where the model draws the same token, so that speculation changes neither
        the distribution nor what a seed draws. The pipeline's own rule for drawn tokens compares the probabilities of
        two different tokens and draws its random number from 0 to 100 (openvino-genai 2026.4.1); with an n-gram
        size it takes the request for one of prompt lookup, and the right rule.
        """
        exact = self.draft is not None and is_greedy
        return {"num_assistant_tokens": self.tokens, "max_ngram_size": 0 if exact else _LOOKUP_NGRAM}


def plan_speculation(config: EngineConfig, model: ModelInfo) -> Speculation | None:
    """What the configuration asks for. Raises ConfigurationError for what cannot be."""
    if config.draft_model_path is None and not config.prompt_lookup:
        return None
    if config.draft_model_path is not None and config.prompt_lookup:
        raise ConfigurationError(
            "A draft model and prompt lookup were both asked for, but one of them proposes the tokens. Leave out "
            "--draft-model or --prompt-lookup."
        )
    if not 1 <= config.num_assistant_tokens <= MAX_ASSISTANT_TOKENS:
        raise ConfigurationError(
            f"{config.num_assistant_tokens} tokens were asked for to be proposed at a time (--num-assistant-tokens). "
            f"Give a number from 1 to {MAX_ASSISTANT_TOKENS}; from 3 to 5 are usual."
        )
    if config.draft_model_path is None:
        return Speculation(config.num_assistant_tokens, None)
    draft = inspect_model(config.draft_model_path)
    _check_vocabulary(model, draft)
    return Speculation(config.num_assistant_tokens, draft)


@contextmanager
def pipeline_folder(model: ModelInfo) -> Iterator[Path]:
    """As `ir_folder`, with an empty tokenizer: a pipeline that speculates asks both models' whether they are equal."""
    from chatfleet.engines.openvino.vocabulary import write_empty_tokenizer

    with ir_folder(model) as source, TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        folder = Path(name)
        for path in source.iterdir():
            if not path.name.startswith(("openvino_tokenizer", "openvino_detokenizer")):
                (folder / path.name).symlink_to(path.resolve())
        write_empty_tokenizer(folder)
        yield folder


def _check_vocabulary(model: ModelInfo, draft: ModelInfo) -> None:
    same_form = model.is_gguf == draft.is_gguf and None not in (model.vocabulary, draft.vocabulary)
    if model.vocab_size == draft.vocab_size and (model.vocabulary == draft.vocabulary or not same_form):
        return
    sizes = f"{draft.vocab_size} against {model.vocab_size} tokens"
    how = sizes if draft.vocab_size != model.vocab_size else "the same number of other tokens"
    raise ConfigurationError(
        f"The draft model {draft.path} has another vocabulary than {model.path} ({how}), so its tokens mean nothing "
        "there. Give a smaller model of the same family, or --prompt-lookup in place of --draft-model."
    )
