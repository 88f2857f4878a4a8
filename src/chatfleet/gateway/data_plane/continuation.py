"""Going on with a stream of a server that is not ours: plain text only.

The text that the client has got becomes an unfinished message of the assistant, which vLLM's `continue_final_message`
has the model go on with. What comes then is made to look as if the first server had sent it.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from chatfleet.gateway.data_plane.delivered import DONE, CannotGoOn, Delivered
from chatfleet.http.streaming import sse

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "logprobs": (None, False),
    "prompt_logprobs": (None,),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "bad_words": (None, []),
    "bad_words_ids": (None, []),
    "suffix": (None, ""),
    "echo": (None, False),
    "audio": (None,),
    "return_token_ids": (None, False),
}
"""The fields whose effect would not go on across the seam, and the values with which they have none."""

_SHOWN: Final = frozenset({"role", "content", "refusal"})
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "min_tokens")


class Continuation(Delivered):
    """The same stream, on another server: its events get the id and the time of the first ones, and its usage is added
    to what they had. `request` is what that server is to be asked."""

    __slots__ = ("_first", "_has_role", "_tokens", "request")

    def __init__(self, before: Delivered, request: bytes, max_bytes: int) -> None:
        """Raises CannotGoOn."""
        if not before.is_whole:
            raise CannotGoOn("the answer is longer than what is kept of it (--recovery-buffer-kb)")
        super().__init__(max_bytes)
        self._first: dict[str, Any] | None = None
        self._has_role = False
        self._tokens = 0
        text = ""
        for piece in before.pieces:
            super().add(piece)
            for event in piece.split(b"\n\n"):
                if _has_data(event):
                    text += self._read(event)
        self.request = _request(request, text, self._tokens)

    def _read(self, event: bytes) -> str:
        """The text of an event that was delivered. Raises CannotGoOn."""
        chunk = _chunk(event)
        if chunk is None or not isinstance(chunk.get("choices"), list):
            raise CannotGoOn("it is not plain text")
        self._first = self._first or chunk
        text = ""
        for choice in _choices(chunk):
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                delta = {}
            self._has_role = self._has_role or "role" in delta
            if choice.get("finish_reason") is not None:
                raise CannotGoOn("the answer was complete, but for its end")
            if choice.get("index") or any(value for name, value in delta.items() if name not in _SHOWN):
                raise CannotGoOn("it is not plain text")
            shown = choice.get("text") or delta.get("content") or ""
            self._tokens += bool(shown)
            text += shown
        return text

    def add(self, events: bytes) -> bytes:
        return super().add(b"".join(map(self._rewritten, events.split(b"\n\n")[:-1])))

    def _rewritten(self, event: bytes) -> bytes:
        chunk = _chunk(event)
        if chunk is None:
            return event + b"\n\n"
        if self._first is not None:
            for name in ("id", "created", "model", "system_fingerprint"):
                if name in self._first:
                    chunk[name] = self._first[name]
        usage = chunk.get("usage")
        for choice in _choices(chunk):
            delta = choice.get("delta")
            if self._has_role and isinstance(delta, dict):
                delta.pop("role", None)
                if not delta.get("content") and choice.get("finish_reason") is None and not usage:
                    return b""
        if isinstance(usage, dict):
            chunk["usage"] = self._added_up(usage)
        return sse(msgspec.json.encode(chunk))

    def _added_up(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The prompt of this server had the tokens of the text before, which were an answer's."""
        prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(prompt_tokens, int) and isinstance(completion_tokens, int)):
            return usage
        before = min(self._tokens, prompt_tokens)
        return {
            **usage,
            "prompt_tokens": prompt_tokens - before,
            "completion_tokens": completion_tokens + before,
            "total_tokens": prompt_tokens + completion_tokens,
        }


def _request(body: bytes, text: str, tokens: int) -> bytes:
    """The request for what comes behind `text`. Raises CannotGoOn."""
    fields: dict[str, Any] = msgspec.json.decode(body)
    for name, neutral in _NEUTRAL.items():
        if not _is_one_of(fields.get(name), neutral):
            raise CannotGoOn(f"{name!r} does not go on across servers")
    if not text:
        return body
    for name in _LIMITS:
        if isinstance(fields.get(name), int):
            fields[name] = max(fields[name] - tokens, 0 if name == "min_tokens" else 1)
    if isinstance(fields.get("prompt"), str):
        if fields.get("max_tokens") is None:
            raise CannotGoOn("how long it may be is for the server to say, and it would count anew")
        fields["prompt"] += text
    elif isinstance(fields.get("messages"), list):
        messages = list(fields["messages"])
        last = messages[-1] if fields.get("continue_final_message") and messages else {}
        if isinstance(last, dict) and isinstance(last.get("content"), str):
            messages[-1] = {**last, "content": last["content"] + text}
        else:
            messages.append({"role": "assistant", "content": text})
        fields |= {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    else:
        raise CannotGoOn("its prompt is not one text")
    return msgspec.json.encode(fields)


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Other than for Python, 0 is not False."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral)


def _has_data(event: bytes) -> bool:
    return any(line.startswith(b"data:") for line in event.split(b"\n"))


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    found = chunk.get("choices")
    return [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list) else []


def _chunk(event: bytes) -> dict[str, Any] | None:
    """The JSON object of an event; None where it has none."""
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    data = b"\n".join(lines)
    if not data or data == DONE[6:-2]:
        return None
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None
