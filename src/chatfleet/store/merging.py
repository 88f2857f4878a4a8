"""A stream of chunks as the one answer that it would have been without `stream`."""

from typing import Any, Final

import msgspec

from chatfleet.store.errors import NotWhole

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_OF_A_CHUNK: Final = frozenset({"object", "choices", "obfuscation"})
_SAID_ONCE: Final = frozenset({"role", "id", "type", "index"})
"""Texts of a delta that are no pieces: a later one stands in place of an earlier one."""

_DECODER: Final = msgspec.json.Decoder()


def merged(events: bytes) -> dict[str, Any]:
    """The chat.completion of a stream of server-sent events, as a client got them.

    Deltas are joined as OpenAI's clients join them: texts are pieces of one text, entries of lists with an `index` are
    pieces of one entry, other lists grow. Raises NotWhole for a stream that has an error, or choices without an end.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    try:
        for chunk in map(_DECODER.decode, _payloads(events)):
            if "error" in chunk:
                raise NotWhole("the stream has an error")
            for name, value in chunk.items():
                if name not in _OF_A_CHUNK and (value is not None or name not in answer):
                    answer[name] = value
            for choice in chunk["choices"]:
                _join(choices.setdefault(choice["index"], {}), choice)
        answer["choices"] = [_whole_choice(choices[index]) for index in sorted(choices)]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as exc:
        raise NotWhole("it is not a stream of chat completion chunks") from exc
    if not choices:
        raise NotWhole("it has no choices")
    answer["object"] = "chat.completion"
    if answer.get("usage", 0) is None:
        del answer["usage"]
    return answer


def _payloads(events: bytes) -> list[bytes]:
    """The data of every event."""
    found = []
    for event in events.split(b"\n\n"):
        lines = [line[len(_DATA) :].strip() for line in event.split(b"\n") if line.startswith(_DATA)]
        if lines and (payload := b"\n".join(lines)) != _DONE:
            found.append(payload)
    return found


class _Pieces(list[str]):
    """A text that grows: to join it anew with every piece would take a time that grows with its square."""


class _Entries(dict[int, dict[str, Any]]):
    """A list whose entries grow, by their indices."""


def _join(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a delta's fields to what came before."""
    for name, value in piece.items():
        if value is None or value == []:
            whole.setdefault(name, value)
        elif name in _SAID_ONCE or name.endswith("_reason") or not isinstance(value, str | list | dict):
            whole[name] = value
        else:
            whole[name] = _joined(whole.get(name), value)


def _joined(before: Any, value: str | list[Any] | dict[str, Any]) -> Any:
    if isinstance(value, str):
        before = _Pieces() if before is None else before
        before.append(value)
    elif isinstance(value, dict):
        before = {} if before is None else before
        _join(before, value)
    elif isinstance(value[0], dict) and "index" in value[0]:
        before = before or _Entries()
        for entry in value:
            _join(before.setdefault(entry["index"], {}), entry)
    else:
        before = before or []
        before.extend(value)
    return before


def _finished(value: Any) -> Any:
    """With texts and lists in place of what has grown."""
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, _Entries):
        return [_finished(value[index]) for index in sorted(value)]
    if isinstance(value, dict):
        return {name: _finished(field) for name, field in value.items()}
    return value


def _whole_choice(joined: dict[str, Any]) -> dict[str, Any]:
    """Raises NotWhole."""
    choice = _finished(joined)
    if choice.get("finish_reason") is None:
        raise NotWhole("a choice has no end")
    delta = choice.pop("delta", {})
    calls = delta.get("tool_calls")
    for call in calls or ():
        del call["index"]
    if (calls or delta.get("function_call")) and not delta.get("content"):
        delta["content"] = None
    message = {"role": "assistant", "content": None, "refusal": None, **delta}
    return {"index": choice.pop("index"), "message": message, "logprobs": None, **choice}
