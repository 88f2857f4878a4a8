"""Streams that are cut and gone on with, as a gateway does it: what was delivered is kept from the `:r` lines."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from support.wire import Json

IDS = {"x-chatfleet-recovery": "ids"}
RESUME = {"x-chatfleet-recovery": "resume"}

_LINE = re.compile(
    r":r (?:(?P<id>[A-Za-z0-9_-]+) (?P<created>\d+)|(?P<usage>usage)"
    r"|(?P<numbers>\d+(?:,\d+)*)(?: (?P<end>stop|length))?(?: (?P<pending>\[.+\]))?)"
)


def blocks(body: str) -> list[str]:
    """The event blocks of a stream, comments included; a block that is cut short is left out."""
    return [f"{block}\n\n" for block in body.split("\n\n")[:-1]]


@dataclass
class Kept:
    """What a gateway knows of a stream: the data of its events, and how to go on."""

    data: list[str] = field(default_factory=list)
    id: str = ""
    created: int = 0
    choices: dict[int, Json] = field(default_factory=dict)
    has_usage: bool = False

    def take(self, block: str) -> None:
        """One event; fails on a block that is not made as it should be."""
        *lines, data = block.removesuffix("\n\n").split("\n")
        assert data.startswith("data: "), block
        self.data.append(data.removeprefix("data: "))
        assert len(lines) <= 2, block
        for line in lines:
            self._take_line(line)

    def _take_line(self, line: str) -> None:
        found = _LINE.fullmatch(line)
        assert found is not None, line
        if found["id"]:
            assert self.id in ("", found["id"])
            self.id, self.created = found["id"], int(found["created"])
        elif found["usage"]:
            self.has_usage = True
        else:
            index, *token_ids = map(int, found["numbers"].split(","))
            choice = self.choices.setdefault(index, {"index": index, "token_ids": []})
            choice["token_ids"] += token_ids
            choice["pending"] = json.loads(found["pending"] or "[]")
            if found["end"]:
                choice["finish_reason"] = found["end"]

    @property
    def is_whole(self) -> bool:
        """Whether no worker is needed any more: behind the usage comes the end, which the gateway knows to say."""
        if self.has_usage and self.data[-1] != "[DONE]":
            self.data.append("[DONE]")
        return self.data[-1] == "[DONE]"

    def resume_body(self, request: Json) -> bytes:
        """What another worker is sent."""
        resume = {"id": self.id, "created": self.created, "choices": list(self.choices.values())}
        return json.dumps({"resume": resume, "request": request}).encode()


def kept(parts: Sequence[str]) -> Kept:
    known = Kept()
    for part in parts:
        known.take(part)
    return known


def merged(data: Sequence[str]) -> Json:
    """A stream's data with what its chunks had joined choice by choice: how an answer was cut into chunks, and how
    its choices took turns, is a matter of time. All else stays as it came. Of the usage, what a worker's own prefix
    cache held is left out."""
    *chunks, last = data
    answer: dict[str, Any] = {"last": last, "choices": {}, "envelopes": set(), "usage": None}
    for chunk in map(json.loads, chunks):
        if not chunk["choices"]:
            chunk["usage"]["prompt_tokens_details"] = None
            assert answer["usage"] is None
            answer["usage"] = chunk
            continue
        (choice,) = chunk.pop("choices")
        answer["envelopes"].add(json.dumps(chunk))
        known = answer["choices"].setdefault(choice["index"], {"text": "", "logprobs": {}, "marks": []})
        assert not known["marks"][1:], "a choice goes on behind its end"
        delta = choice.get("delta", choice)
        if "role" in delta or choice["finish_reason"] is not None:
            known["marks"].append({name: value for name, value in choice.items() if name not in ("text", "logprobs")})
        if "role" not in delta:
            known["text"] += delta.pop("content", None) or delta.pop("text", None) or ""
            _add_meaning(known, delta)
        for name, values in (choice["logprobs"] or {}).items():
            if values is not None:
                known["logprobs"].setdefault(name, []).extend(values)
    return answer


def _add_meaning(known: dict[str, Any], delta: Json) -> None:
    """Reasoning and calls."""
    reasoning = delta.get("reasoning_content")
    if reasoning:
        assert delta["reasoning"] == reasoning
        known["reasoning"] = known.get("reasoning", "") + reasoning
    for call in [*delta.get("tool_calls", []), *([delta["function_call"]] if "function_call" in delta else [])]:
        function = call.get("function", call)
        whole = known.setdefault("calls", {}).setdefault(call.get("index"), {"arguments": "", "said": []})
        whole["arguments"] += function["arguments"]
        whole["said"] += [call[name] for name in ("id", "type") if name in call] + [function.get("name")] * (
            "name" in function
        )
