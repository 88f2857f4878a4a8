"""Log probabilities as /v1/completions has them: parallel lists over prompt and completion."""

import math
from collections.abc import Sequence
from dataclasses import replace

from chatfleet.chat.text import CharacterDecoder, TokenText
from chatfleet.chat.tokenizer import HuggingFaceTokenizer, Tokenizer
from chatfleet.engines.base import TokenLogprobs
from chatfleet.protocol.completions import CompletionLogprobs


def prompt_tokens(
    tokenizer: Tokenizer, text: str, token_ids: Sequence[int], *, shows_control: bool = False
) -> list[TokenText]:
    """A prompt's tokens in their places of `text`, the prompt as it is shown. Log probabilities are not known yet: NaN.

    Control tokens are among them, so that there are as many as the prompt has, and have room only where they are
    written out; `shows_control` says that all are. A token that begins inside a character begins where that does.
    Takes some microseconds a token.
    """
    decoder = CharacterDecoder()
    strips = tokenizer.strips_leading_space
    tokens: list[TokenText] = []
    at = 0
    for token_id in token_ids:
        token_bytes = tokenizer.token_bytes(token_id)
        if tokenizer.is_special(token_id) and not shows_control:
            written = token_bytes.decode("utf-8", "replace")
            size = len(written) if text.startswith(written, at) else 0
        else:
            if strips:
                token_bytes, strips = token_bytes.removeprefix(b" "), False
            broken, piece = decoder.feed(token_bytes)
            size = len(piece)
            at += len(broken)
            if not text.startswith(piece, at) and isinstance(tokenizer, HuggingFaceTokenizer):
                return _as_read(tokenizer, text, token_ids)
        tokens.append(TokenText(token_id, token_bytes, at, math.nan))
        at += size
    return tokens


def _as_read(tokenizer: HuggingFaceTokenizer, text: str, token_ids: Sequence[int]) -> list[TokenText]:
    """The same for a text that the tokenizer has changed before it read it."""
    return [
        TokenText(token_id, tokenizer.token_bytes(token_id), offset, math.nan)
        for token_id, offset in zip(token_ids, tokenizer.offsets(text), strict=True)
    ]


def scored(tokens: Sequence[TokenText], logprobs: Sequence[TokenLogprobs | None]) -> list[TokenText]:
    """A prompt's tokens with what the engine says of them: nothing of the first, before which there is nothing."""
    return [
        token if entry is None else replace(token, logprob=entry.logprob, top=entry.top)
        for token, entry in zip(tokens, logprobs, strict=True)
    ]


def placed_behind(tokens: Sequence[TokenText], chars: int) -> list[TokenText]:
    """Tokens of a completion behind an echo of so many characters."""
    return [replace(token, offset=token.offset + chars) for token in tokens] if chars else list(tokens)


def completion_logprobs(tokens: Sequence[TokenText], tokenizer: Tokenizer, top: int) -> CompletionLogprobs:
    """The lists, with the `top` likeliest alternatives of each token beside the token itself."""
    return CompletionLogprobs(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[None if math.isnan(token.logprob) else token.logprob for token in tokens],
        tokens=[token.text for token in tokens],
        top_logprobs=[_top(token, tokenizer, top) for token in tokens] if top else None,
    )


def _top(token: TokenText, tokenizer: Tokenizer, top: int) -> dict[str, float] | None:
    if math.isnan(token.logprob):
        return None
    alternatives = {tokenizer.token_bytes(i).decode("utf-8", "replace"): logprob for i, logprob in token.top[:top]}
    return {**alternatives, token.text: token.logprob}


def joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs | None:
    """The lists of one choice's deltas, one behind the other."""
    if not parts:
        return None
    return CompletionLogprobs(
        text_offset=[offset for part in parts for offset in part.text_offset],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        tokens=[token for part in parts for token in part.tokens],
        top_logprobs=None if parts[0].top_logprobs is None else [t for part in parts for t in part.top_logprobs or ()],
    )


def mean_logprob(tokens: Sequence[TokenText]) -> float:
    """What `best_of` chooses by: log probability per token that shows. An answer without any is the worst."""
    return math.fsum(token.logprob for token in tokens) / len(tokens) if tokens else -math.inf
