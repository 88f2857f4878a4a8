"""Log probabilities of a prompt in vLLM's form."""

from collections.abc import Sequence

from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.engines.base import TokenLogprobs
from chatfleet.protocol.common import JsonObject, PromptLogprobs


def vllm_prompt_logprobs(entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer, top: int) -> PromptLogprobs:
    """By position: of the token there and of the `top` likeliest ones, by token id. `rank` counts from 1, where it is
    known."""
    return [None if entry is None else _position(entry, tokenizer, top) for entry in entries]


def _position(entry: TokenLogprobs, tokenizer: Tokenizer, top: int) -> dict[str, JsonObject]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, 1)}
    said = {token_id: logprob for token_id, logprob in entry.top[:top]} | {entry.token_id: entry.logprob}
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": ranks.get(token_id),
            "decoded_token": tokenizer.token_bytes(token_id).decode("utf-8", "replace"),
        }
        for token_id, logprob in said.items()
    }
