"""What every engine refuses alike."""

from collections.abc import Sequence

from chatfleet.engines.base import Capabilities, Fault, GenerateRequest, RequestRefused, unsupported_parameters


def check_request(request: GenerateRequest, capabilities: Capabilities) -> None:
    """Raises RequestRefused for a request that the engine cannot run to its end."""
    sampling = request.sampling
    for name in unsupported_parameters(sampling, capabilities):
        message = f"The {capabilities.engine} engine does not support {name}."
        raise RequestRefused(Fault(message=message, kind="unsupported", param=name))
    if (sampling.logprobs or 0) > (most := capabilities.max_top_logprobs):
        others = f"and of up to {most} others" if most else "only, not of others"
        message = f"The {capabilities.engine} engine gives log probabilities of the chosen tokens {others}."
        raise RequestRefused(Fault(message=message, kind="invalid" if most else "unsupported", param="top_logprobs"))
    if (sampling.logprobs or 0) < 0:
        raise _invalid("The number of log probabilities is negative.", param="logprobs")
    check_prompt(request.prompt_token_ids, capabilities, completion_tokens=sampling.max_tokens)
    output_token_ids = request.output_token_ids
    if output_token_ids and len(output_token_ids) >= sampling.max_tokens:
        raise _invalid("The answer to go on with has all of its tokens.")
    _check_vocabulary(output_token_ids, capabilities)
    _check_vocabulary(list(sampling.logit_bias), capabilities, param="logit_bias")
    for word in sampling.bad_words_token_ids:
        if not word:
            raise _invalid("A bad word has no tokens.", param="bad_words")
        _check_vocabulary(word, capabilities, param="bad_words")


def check_prompt(
    prompt_token_ids: Sequence[int],
    capabilities: Capabilities,
    *,
    completion_tokens: int = 0,
    context_length: int | None = None,
) -> None:
    """Raises RequestRefused for a prompt that is empty, too long with its completion, or of tokens that are none.

    `context_length` is the engine's own where no other is given.
    """
    count, context_length = len(prompt_token_ids), context_length or capabilities.context_length
    if count == 0:
        raise _invalid("The prompt is empty.")
    if count + completion_tokens > context_length:
        raise _invalid(
            f"The prompt of {count} tokens does not fit: with a completion of {completion_tokens} it exceeds the "
            f"context of {context_length} tokens."
        )
    _check_vocabulary(prompt_token_ids, capabilities)


def _check_vocabulary(token_ids: Sequence[int], capabilities: Capabilities, param: str | None = None) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < capabilities.vocab_size):
        raise _invalid(f"A token id is outside of the vocabulary of {capabilities.vocab_size}.", param=param)


def _invalid(message: str, *, param: str | None = None) -> RequestRefused:
    return RequestRefused(Fault(message=message, kind="invalid", param=param))
