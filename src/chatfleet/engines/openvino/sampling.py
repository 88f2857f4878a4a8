"""`SamplingParams` as the pipeline's generation settings."""

import hashlib
import secrets
from typing import Any

from chatfleet.engines.base import GREEDY_BELOW, Fault, RequestRefused, SamplingParams

BASE_PARAMETERS = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids", "logprobs", "prompt_logprobs"}
)
"""Honoured with any model. Which penalties are depends on the graph: see `honoured_parameters`."""


def honoured_parameters(*, shifted_logits: bool, speculates: bool, knows_text: bool = True) -> frozenset[str]:
    """The `SamplingParams` fields that a model can honour.

    openvino-genai (2026.4.1 and before) adds presence and frequency penalties to negative logits where it
    should subtract them: a token said 20 times before is pushed up by 20. In a graph whose logits are shifted
    to be positive (`ir.LOGIT_SHIFT`) they are right, but `repetition_penalty`, which divides or multiplies
    by the logit's sign, is wrong; without the shift it is the other way round. So one or the other.

    To forbid the stop tokens before `min_tokens` the pipeline sets their logits to 0.0: behind every other one where
    the logits are shifted, and often before them where they are not. Where it speculates it stops
    too soon.

    Grammars need to know what text the tokens stand for (`EngineConfig.token_bytes`). Where the pipeline speculates
    there are none: tokens that a draft proposes behind the end of a grammar fail the step.

    Not among them: `logit_bias` and `bad_words_token_ids`, for which the pipeline has nothing. (Its grammars are over
    text, not tokens.)
    """
    of_graph = {"presence_penalty", "frequency_penalty"} if shifted_logits else {"repetition_penalty"}
    if shifted_logits and not speculates:
        of_graph.add("min_tokens")
    if knows_text and not speculates:
        of_graph.add("grammar")
    return BASE_PARAMETERS | of_graph


def generation_settings(sampling: SamplingParams, *, vocab_size: int, given: int = 0) -> dict[str, Any]:
    """The attributes of a `GenerationConfig` for `sampling`, where `given` tokens of the answer are there already.

    `logprobs` are of the model's own distribution, before temperature and penalties, as in vLLM. A seed that
    is not of 32 bits, as the pipeline's generator has them, is made into one; without one a fresh one is drawn, for the
    pipeline would use the same one each time. The generator always begins at its beginning: behind given tokens
    it gets another seed, made of the seed and their number, else it would draw as it did for the first ones.
    Raises RequestRefused for a value out of range.
    """
    _check(sampling)
    # The pipeline writes outside of the logits for a stop token beyond them. Nobody says such a one.
    stop_token_ids = tuple(token_id for token_id in sampling.stop_token_ids if token_id < vocab_size)
    max_new_tokens = sampling.max_tokens - given
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min(max(0, sampling.min_tokens - given), max_new_tokens) if stop_token_ids else 0,
        "logprobs": 0 if sampling.logprobs is None else 1,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "apply_chat_template": False,
        **_stop_settings(stop_token_ids),
    }
    if is_greedy(sampling):
        return settings | {"do_sample": False}
    return settings | {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(0, sampling.top_k),
        "min_p": sampling.min_p,
        "rng_seed": secrets.randbits(32) if sampling.seed is None else _seed(sampling.seed, given),
    }


def _seed(seed: int, given: int) -> int:
    if not given and 0 <= seed < 2**32:
        return seed
    digest = hashlib.blake2b(f"{seed} {given}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def is_greedy(sampling: SamplingParams) -> bool:
    """Whether only the likeliest token can be drawn (top_p of 0 and min_p of 1 leave no other)."""
    return sampling.temperature < GREEDY_BELOW or sampling.top_p <= 0 or sampling.top_k == 1 or sampling.min_p >= 1


def has_state(sampling: SamplingParams) -> bool:
    """Whether the next token depends on more than the tokens before it: on what the pipeline counts or draws."""
    counts = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
    return counts or (sampling.seed is not None and not is_greedy(sampling))


def _stop_settings(stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    # An empty set and an eos id of -1 mean "the model's own", so both are always given; where nothing is to
    # stop the request, ignore_eos makes the pipeline disregard them.
    ids = stop_token_ids or (0,)
    return {"eos_token_id": ids[0], "stop_token_ids": set(ids), "ignore_eos": not stop_token_ids}


def _check(sampling: SamplingParams) -> None:
    bounds: tuple[tuple[str, float, float], ...] = (
        ("max_tokens", 0 if sampling.prompt_logprobs else 1, 2**31),
        ("temperature", 0, float("inf")),
        ("top_p", 0, 1),
        ("min_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
    )
    for name, low, high in bounds:
        value = getattr(sampling, name)
        if not low <= value <= high:  # written so that NaN fails
            raise _refused(name, f"{name} must be from {low:g} to {high:g}, not {value:g}.")
    if not sampling.repetition_penalty > 0:
        raise _refused("repetition_penalty", "repetition_penalty must be more than 0.")
    if any(token_id < 0 for token_id in sampling.stop_token_ids):
        raise _refused("stop_token_ids", "stop_token_ids must not be negative.")
    if sampling.grammar is not None and sampling.min_tokens:
        # Where the grammar is complete and the end forbidden, no token is left, and the pipeline takes token 0.
        message = "The openvino engine does not support min_tokens together with structured output."
        raise RequestRefused(Fault(message=message, kind="unsupported", param="min_tokens"))


def _refused(param: str, message: str) -> RequestRefused:
    return RequestRefused(Fault(message=message, kind="invalid", param=param))
