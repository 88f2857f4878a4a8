"""What an answer says, whatever pieces it came in, and whether two say the same."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from support.wire import Json, error_object

_LOGPROB_LISTS: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_SHOWN_CHARS: Final = 60


class Malformed(Exception):
    """No client could read this answer as one; the text says why."""


@dataclass(frozen=True)
class Refused:
    """A well-formed error: in place of the answer with its HTTP status, or as the last event of a stream (None)."""

    status: int | None
    error: Json

    def __str__(self) -> str:
        return f"{self.status or 'in the stream'} {self.error['code']}: {self.error['message']}"


@dataclass
class Choice:
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[Json] = field(default_factory=list)
    """Of chat: the tokens. Of completions: one object, its lists joined."""
    roles: int = 0


@dataclass
class Answer:
    """The sum of a stream's events, or a whole answer. `shapes` are the fields that its events have."""

    model: str
    choices: dict[int, Choice]
    usage: Json | None
    shapes: set[str]


def read_whole(status: int, body: bytes) -> Answer | Refused:
    """Raises Malformed."""
    if status != 200:
        return Refused(status, _error(body))
    answer = _json(body)
    choices = {}
    for choice in answer["choices"]:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        choices[choice["index"]] = read = Choice(text, choice["finish_reason"])
        _add_logprobs(read, choice["logprobs"])
    return Answer(answer["model"], choices, _counts(answer["usage"]), set())


def read_stream(status: int, body: bytes) -> Answer | Refused:
    """Raises Malformed."""
    if status != 200:
        return Refused(status, _error(body))
    *data, last = _events(body)
    if last != "[DONE]":
        if '"error"' not in last:
            raise Malformed(f"the stream ends with {last[:200]!r}")
        join_events([_json(item) for item in data], is_complete=False)
        return Refused(None, _error(last))
    return join_events([_json(item) for item in data])


def join_events(parts: Sequence[Json], *, is_complete: bool = True) -> Answer:
    """The answer of a stream's chunks. Raises Malformed when they are not of one stream, or out of order."""
    for name in ("id", "created", "model", "object"):
        if len(values := {part.get(name) for part in parts}) > 1:
            raise Malformed(f"the events of one stream differ in {name}: {values}")
    answer = Answer(parts[0]["model"] if parts else "", {}, None, set())
    for part in parts:
        if answer.usage is not None:
            raise Malformed(f"an event follows the one of usage: {part}")
        if not part["choices"]:
            answer.usage = _counts(part["usage"])
        elif part.get("usage") is not None:
            raise Malformed(f"usage came before the end: {part}")
        for event in part["choices"]:
            choice = answer.choices.setdefault(event["index"], Choice())
            if choice.finish_reason is not None:
                raise Malformed(f"an event of choice {event['index']} follows its last: {event}")
            _add_event(choice, event)
            answer.shapes.add(_shape(part, event))
    if is_complete and any(choice.finish_reason is None for choice in answer.choices.values()):
        raise Malformed(f"choices without an end: {answer.choices}")
    return answer


def _add_event(choice: Choice, event: Json) -> None:
    if "delta" in event:
        if "role" in event["delta"]:
            if choice.text or choice.roles:
                raise Malformed(f"choice {event['index']} says its role a second time")
            choice.roles += 1
        choice.text += event["delta"].get("content") or ""
    else:
        choice.text += event["text"]
    choice.finish_reason = event["finish_reason"]
    _add_logprobs(choice, event["logprobs"])


def _add_logprobs(choice: Choice, logprobs: Json | None) -> None:
    if logprobs is None:
        return
    if "tokens" not in logprobs:
        choice.logprobs += logprobs["content"] or []
    elif not choice.logprobs:
        choice.logprobs.append(dict(logprobs))
    else:
        joined = choice.logprobs[0]
        for name in _LOGPROB_LISTS:
            joined[name] = None if joined[name] is None else joined[name] + logprobs[name]


def _shape(part: Json, event: Json) -> str:
    choice = (f"choices.{name}" for name in event)
    return " ".join(sorted([*part, *choice, *(f"choices.delta.{name}" for name in event.get("delta", ()))]))


def _counts(usage: Json) -> Json:
    """Without what the cache had: that depends on who was asked before."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


def _events(body: bytes) -> Iterator[str]:
    """The data of every event. Raises Malformed."""
    text = body.decode()
    if not text.endswith("\n\n"):
        raise Malformed(f"the stream ends in the middle of an event: {text[-200:]!r}")
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block == ": keep-alive":
            continue
        if not block.startswith("data: ") or "\n" in block:
            raise Malformed(f"this is no event: {block[:200]!r}")
        yield block.removeprefix("data: ")


def _json(text: str | bytes) -> Json:
    try:
        parsed: Json = json.loads(text)
    except ValueError as exc:
        raise Malformed(f"this is no JSON: {text[:200]!r}") from exc
    return parsed


def _error(text: str | bytes) -> Json:
    try:
        return error_object(text)
    except (AssertionError, ValueError) as exc:
        raise Malformed(f"this is no error object: {text[:200]!r}") from exc


def differences(expected: Answer, found: Answer) -> list[str]:
    """What is not the same, for a person; empty where nothing is."""
    lines = []
    for name in ("model", "usage"):
        if getattr(expected, name) != getattr(found, name):
            lines.append(f"{name}: expected {getattr(expected, name)}, found {getattr(found, name)}")
    if expected.choices.keys() != found.choices.keys():
        lines.append(f"choices: expected {sorted(expected.choices)}, found {sorted(found.choices)}")
    for index in expected.choices.keys() & found.choices.keys():
        one, other = expected.choices[index], found.choices[index]
        if one.text != other.text:
            lines.append(f"text of choice {index}{_first_difference(one.text, other.text)}")
        if one.logprobs != other.logprobs:
            lines.append(f"logprobs of choice {index}{_first_difference(one.logprobs, other.logprobs)}")
        for name in ("finish_reason", "roles"):
            if getattr(one, name) != getattr(other, name):
                lines.append(f"{name} of choice {index}: {getattr(one, name)} became {getattr(other, name)}")
    if new := found.shapes - expected.shapes:
        lines.append(f"events with other fields: {new}, expected {expected.shapes}")
    return lines


def _first_difference(expected: Sequence[Any], found: Sequence[Any]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((index for index, (one, other) in pairs if one != other), min(len(expected), len(found)))
    start = max(0, at - 10) if isinstance(expected, str) else at
    return (
        f" ({len(expected)} long, found {len(found)}) differs from {at}: "
        f"expected {str(expected[start : at + 10])[:_SHOWN_CHARS]!r}, "
        f"found {str(found[start : at + 10])[:_SHOWN_CHARS]!r}"
    )
