"""From a request's fields to an engine's sampling settings. Pure: decides, refuses, and touches nothing."""

from collections.abc import Collection

import msgspec

from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from chatfleet.engines.base import Capabilities, SamplingParams, unsupported_parameters
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.protocol.common import MAX_BAD_WORD_TOKENS, SamplingFields
from chatfleet.worker.structure import Constraint

MAX_CHOICES = 128
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions


def completion_budget(*, prompt_tokens: int, max_tokens: int | None, context_length: int, param: str) -> int:
    """How many tokens may be generated: `max_tokens`, or what the context leaves.

    Raises ContextLengthExceeded, naming `param` as what is too long.
    """
    left = context_length - prompt_tokens
    if left < (max_tokens if max_tokens is not None else 1):
        raise ContextLengthExceeded(
            prompt_tokens=prompt_tokens, max_tokens=max_tokens, context_length=context_length, param=param
        )
    return left if max_tokens is None else max_tokens


def sampling_params(
    request: SamplingFields,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: bool,
    constraint: Constraint | None = None,
    tokenizer: Tokenizer,
    capabilities: Capabilities,
) -> SamplingParams:
    """The resolved settings of a request's first choice. OpenAI's defaults stand where the request is silent.

    Raises UnsupportedParameter naming what the engine does not honour, InvalidRequest for token ids
    outside the vocabulary and for bad words that cannot be.
    """
    top_p = 1.0 if request.top_p is None else request.top_p
    temperature = 1.0 if request.temperature is None else request.temperature
    stop_token_ids = set(request.stop_token_ids or ())
    _check_vocabulary(stop_token_ids, "stop_token_ids", capabilities)
    _check_vocabulary(request.logit_bias or (), "logit_bias", capabilities)
    if not request.ignore_eos:
        stop_token_ids |= set(tokenizer.eos_token_ids)
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if top_p > 0 else 0.0,  # top_p 0 leaves the likeliest token alone
        top_p=top_p if top_p > 0 else 1.0,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        seed=request.seed,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(sorted(stop_token_ids)),
        logit_bias=request.logit_bias or {},
        bad_words_token_ids=_bad_words(request, tokenizer, capabilities),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=None if constraint is None else constraint.text,
    )
    if sampling.min_tokens > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' is {sampling.min_tokens}, and the answer may have {max_tokens} tokens at most.",
            param="min_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' needs 'stream' to be true.", param="stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("'prompt_logprobs' does not go with 'stream'.", param="prompt_logprobs")
    for name in unsupported_parameters(sampling, capabilities):
        param, what = name, f"'{name}'"
        if name == "prompt_logprobs" and request.prompt_logprobs is None:
            param, what = "echo", "echo together with logprobs"
        elif name == "bad_words_token_ids":
            param = "bad_words" if request.bad_words else "bad_words_ids"
            what = f"'{param}'"
        raise UnsupportedParameter(f"The engine {capabilities.engine!r} does not honour {what}.", param=param)
    return sampling


def _bad_words(
    request: SamplingFields, tokenizer: Tokenizer, capabilities: Capabilities
) -> tuple[tuple[int, ...], ...]:
    """The token sequences of `bad_words` and of `bad_words_ids`, each once.

    A word is forbidden at the beginning of a text and behind a space, however many tokens spell it there: vLLM forgets
    the second where they are not as many.
    """
    words: dict[tuple[int, ...], None] = {}
    for word in request.bad_words or ():
        bare, behind_space = (
            tuple(tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False)) for prefix in ("", " ")
        )
        if not bare or len(bare) > MAX_BAD_WORD_TOKENS:
            raise InvalidRequest(
                f"A word in 'bad_words' has {len(bare)} tokens: it must have from 1 to {MAX_BAD_WORD_TOKENS}.",
                param="bad_words",
            )
        words[bare] = None
        if behind_space[-len(bare) :] != bare:
            words[behind_space] = None
    for token_ids in request.bad_words_ids or ():
        _check_vocabulary(token_ids, "bad_words_ids", capabilities)
        words[tuple(token_ids)] = None
    return tuple(words)


def _check_vocabulary(token_ids: Collection[int], param: str, capabilities: Capabilities) -> None:
    outside = [token_id for token_id in token_ids if not 0 <= token_id < capabilities.vocab_size]
    if outside:
        raise InvalidRequest(
            f"Token id {outside[0]} in '{param}' is outside the model's vocabulary of "
            f"{capabilities.vocab_size} tokens.",
            param=param,
        )


def check_prompt_vocabulary(prompt_token_ids: Collection[int], param: str, capabilities: Capabilities) -> None:
    """Raises InvalidRequest for token ids that the model does not have."""
    if prompt_token_ids and max(prompt_token_ids) >= capabilities.vocab_size:
        _check_vocabulary(prompt_token_ids, param, capabilities)


def for_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    """The settings of the n-th choice of one prompt: a seed of its own, so that choices differ."""
    if choice == 0 or sampling.seed is None:
        return sampling
    seed = (sampling.seed + choice + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(sampling, seed=seed)


def requested_top_logprobs(wanted: int | None, param: str, capabilities: Capabilities) -> int | None:
    """Alternatives per token. Raises UnsupportedParameter for more than the engine gives."""
    if wanted is not None and wanted > capabilities.max_top_logprobs:
        limit = capabilities.max_top_logprobs
        gives = f"up to {limit} alternatives" if limit else "the chosen tokens' log probabilities only"
        raise UnsupportedParameter(
            f"The engine {capabilities.engine!r} gives {gives}: lower '{param}' to {limit}.", param=param
        )
    return wanted


def check_choices(count: int, param: str) -> None:
    """Raises InvalidRequest for more choices than one request may have."""
    if count > MAX_CHOICES:
        raise InvalidRequest(
            f"{count} choices (prompts x n) are more than the {MAX_CHOICES} that one request may have.",
            param=param,
        )


def refuse_unsupported_chat(request: ChatCompletionRequest, *, is_in_fleet: bool) -> None:
    """Raises UnsupportedParameter for what no engine of ours can do, InvalidRequest for what does not go together."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    if request.store and not is_in_fleet:
        raise UnsupportedParameter(
            "'store' needs a gateway: a worker alone keeps no completions. Ask a gateway, or leave it out.",
            param="store",
        )
    _refuse(
        {
            "modalities": request.modalities not in (None, [], ["text"]),
            "audio": request.audio is not None,
            "web_search_options": request.web_search_options is not None,
            "moderation": request.moderation is not None,
        }
    )


def _refuse(refused: dict[str, bool]) -> None:
    for param, is_refused in refused.items():
        if is_refused:
            raise UnsupportedParameter(f"'{param}' is not supported here with this value.", param=param)
