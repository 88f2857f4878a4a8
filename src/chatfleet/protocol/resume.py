"""How a gateway has a worker of ours go on with a stream that another has begun. Between our own parts only."""

from typing import Literal

import msgspec


class PendingLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A generated token that did not show yet: id, natural-log probability, and the likeliest ids with theirs."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class ResumedChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was generated of one choice, and delivered as far as it shows. `pending` are the last of `token_ids` whose
    text was still held back, where log probabilities were asked for."""

    index: int
    token_ids: list[int]
    finish_reason: Literal["stop", "length"] | None = None
    pending: list[PendingLogprob] = []


class Resume(msgspec.Struct, frozen=True):
    """A stream that has begun. Choices that are not named have not begun."""

    id: str
    created: int
    choices: list[ResumedChoice]


class ResumeBody(msgspec.Struct, frozen=True):
    """The body of a request to go on: `request` is that of the request itself, untouched."""

    resume: Resume
    request: msgspec.Raw
