"""Streams that another worker can go on with, and streams that go on: the lines that a gateway keeps, and their replay.

docs/reliability.md has the form of the lines. They stand inside the block of the event that they belong to, as comments
of server-sent events, and are for gateways only: these take them out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from chatfleet.chat.text import IncrementalText, Logprob, TextRules, TokenText
from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.core.errors import InvalidRequest
from chatfleet.engines.base import FinishReason, SamplingParams
from chatfleet.protocol.resume import PendingLogprob, Resume, ResumeBody, ResumedChoice
from chatfleet.worker.structure import Constraint

RESUME_FIELD: Final = "resume"
"""Of a body that asks to go on with a stream; of a client's, an attempt to make one up."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_encode_held = msgspec.json.Encoder().encode
_decode_body = msgspec.json.Decoder(ResumeBody).decode


@dataclass(frozen=True, slots=True)
class Terms:
    """What a gateway asks for beside the request: its place in the queue (lower first), a stream that can be gone on
    with, and the one to go on with."""

    priority: int = 0
    recoverable: bool = False
    resume: Resume | None = None

    def begun_choices(self) -> set[int]:
        """The choices of which something has been delivered."""
        return set() if self.resume is None else {choice.index for choice in self.resume.choices}


@dataclass(slots=True)
class _Unsaid:
    """What is to be said of a choice with its next event, but for the last `unfinished` tokens, unless it ends it."""

    token_ids: list[int] = field(default_factory=list)
    held: Sequence[TokenText] = ()
    unfinished: int = 0


class RecoveryLines:
    """The lines of one stream. An event's lines are asked for once, in the order in which the events are sent."""

    def __init__(self, stream_id: str, created: int) -> None:
        self._opening = f":r {stream_id} {created}\n"
        self._unsaid: dict[int, _Unsaid] = {}

    def consumed(self, index: int, token_ids: Sequence[int], held: Sequence[TokenText], unfinished: int = 0) -> None:
        """A choice has come on by these tokens, of which the last `unfinished` end inside of a character, where nobody
        may go on; `held` are all before those that have to show yet with their log probabilities."""
        unsaid = self._unsaid.get(index)
        if unsaid is None:
            unsaid = self._unsaid[index] = _Unsaid()
        unsaid.token_ids += token_ids
        unsaid.held = held
        unsaid.unfinished = unfinished

    def of_choice(self, index: int, finish_reason: str | None) -> bytes:
        """For an event of a choice."""
        line = f"{self._take_opening()}:r {index}"
        if (unsaid := self._unsaid.get(index)) is not None:
            kept = 0 if finish_reason is not None else unsaid.unfinished
            said = len(unsaid.token_ids) - kept
            for token_id in unsaid.token_ids[:said]:
                line += f",{token_id}"
            del unsaid.token_ids[:said]
            if finish_reason is None and unsaid.held:
                held = [PendingLogprob(token.token_id, token.logprob, list(token.top)) for token in unsaid.held]
                line += f" {_encode_held(held).decode()}"
        if finish_reason is not None:
            line += f" {finish_reason}"
        return f"{line}\n".encode()

    def of_usage(self) -> bytes:
        return f"{self._take_opening()}:r usage\n".encode()

    def of_end(self) -> bytes:
        return self._take_opening().encode()

    def _take_opening(self) -> str:
        opening, self._opening = self._opening, ""
        return opening


@dataclass(frozen=True, slots=True)
class Replay:
    """A choice as far as it was delivered, as the text of `shown_token_ids`. `finish_reason`, where it is over, was
    delivered too if `is_done`."""

    token_ids: list[int]
    text: IncrementalText
    finish_reason: FinishReason | None
    shown_token_ids: Sequence[int]
    is_done: bool = False


def parse_resume_body(body: bytes) -> tuple[Resume, bytes]:
    """The stream to go on with, and the body of its request. Raises InvalidRequest."""
    try:
        parsed = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRequest(f"The body of a request to go on with a stream is not valid: {exc}.") from exc
    return parsed.resume, bytes(parsed.request)


def check_resume(resume: Resume, *, choices: int, vocab_size: int) -> None:
    """Raises InvalidRequest where it does not fit a request of `choices` choices."""
    if not _ID.fullmatch(resume.id):
        raise _invalid("its id is not 1 to 128 letters, digits, hyphens and underscores")
    if not 0 <= resume.created < 2**53:
        raise _invalid("its time is out of range")
    indices = [choice.index for choice in resume.choices]
    if len(set(indices)) < len(indices):
        raise _invalid("it names a choice twice")
    if any(not 0 <= index < choices for index in indices):
        raise _invalid(f"it names a choice beyond the {choices} of the request")
    for choice in resume.choices:
        if choice.token_ids and not (min(choice.token_ids) >= 0 and max(choice.token_ids) < min(vocab_size, 2**31)):
            raise _invalid(f"it has token ids outside of the model's vocabulary of {vocab_size} tokens")


def replay(choice: ResumedChoice, tokenizer: Tokenizer, rules: TextRules, sampling: SamplingParams) -> Replay:
    """Bring a choice to where it was. Takes about half a microsecond a token. Raises InvalidRequest.

    A choice ends with its last token as it would have where it was generated, and then all of its text has been shown.
    """
    token_ids = choice.token_ids
    if len(token_ids) > sampling.max_tokens:
        raise _invalid(f"choice {choice.index} has {len(token_ids)} tokens of at most {sampling.max_tokens}")
    text = IncrementalText(tokenizer, rules)
    if choice.finish_reason is not None:
        return Replay(token_ids, text, choice.finish_reason, token_ids, is_done=True)
    if token_ids and token_ids[-1] in sampling.stop_token_ids and len(token_ids) > sampling.min_tokens:
        return Replay(token_ids, text, "stop", token_ids if rules.shows_stop else token_ids[:-1])
    finish_reason: FinishReason | None = None
    if text.replay(token_ids, _held(choice, tokenizer, rules, sampling)):
        finish_reason = "stop"
    elif len(token_ids) == sampling.max_tokens:
        finish_reason = "stop" if text.finish().stopped else "length"
    return Replay(token_ids, text, finish_reason, token_ids)


def grammar_behind(constraint: Constraint, choice: ResumedChoice, token_bytes: Sequence[bytes]) -> str:
    """The grammar of the rest of a choice. Raises InvalidRequest where what there is has not followed it."""
    text = b"".join(token_bytes[token_id] for token_id in choice.token_ids).decode("utf-8", "replace")
    try:
        return constraint.behind(text)
    except ValueError as exc:
        raise _invalid(f"choice {choice.index} is not in the form that the request asks for") from exc


def _held(choice: ResumedChoice, tokenizer: Tokenizer, rules: TextRules, sampling: SamplingParams) -> list[Logprob]:
    pending = choice.pending
    if not pending or sampling.logprobs is None:
        return []
    visible = [token_id for token_id in choice.token_ids if not rules.hides(token_id, tokenizer)]
    if visible[-len(pending) :] != [entry.token_id for entry in pending]:
        raise _invalid(f"the log probabilities of choice {choice.index} are not those of its last tokens")
    return [Logprob(entry.logprob, entry.top) for entry in pending]


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The stream to go on with is not valid: {problem}.", param=RESUME_FIELD)
