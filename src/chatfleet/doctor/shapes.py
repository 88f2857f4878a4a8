"""The forms that the reference gives to answers, and whether an answer has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from chatfleet.doctor.client import Answer, Failed, Json


@dataclass(frozen=True)
class Maybe:
    """A field that may be missing."""

    shape: "Shape"


@dataclass(frozen=True)
class OneOf:
    """One of these values."""

    values: tuple[object, ...]


Shape: TypeAlias = "type | None | Maybe | OneOf | tuple[Shape, ...] | list[Shape] | Mapping[str, Shape]"
"""A type, None, a value of `OneOf`, any of a tuple of shapes, a list of one shape, or an object by its fields; fields
that are not named may be there."""


def require(condition: object, reason: str) -> None:
    """Raises Failed with the reason unless the condition holds."""
    if not condition:
        raise Failed(reason)


def must_fit(value: Any, shape: Shape, path: str) -> None:
    """Raises Failed, which names the place, unless the value has the shape."""
    if (wrong := _misfit(value, shape, path)) is not None:
        raise Failed(wrong)


def _misfit(value: Any, shape: Shape, path: str) -> str | None:
    if isinstance(shape, tuple):
        misfits = [_misfit(value, each, path) for each in shape]
        return None if None in misfits else misfits[-1] if value is not None else f"{path} is null."
    if isinstance(shape, Maybe):
        return _misfit(value, shape.shape, path)
    if isinstance(shape, OneOf):
        return None if value in shape.values else f"{path} is {_shown(value)}, not {_any_of(shape.values)}."
    if shape is None:
        return None if value is None else f"{path} is {_shown(value)}, not null."
    if isinstance(shape, type):
        wanted = (int, float) if shape is float else shape
        fits = isinstance(value, wanted) and (shape is bool or not isinstance(value, bool))
        return None if fits else f"{path} is {_shown(value)}, not {_NAMES[shape]}."
    if isinstance(shape, Mapping):
        return _misfit_of_object(value, shape, path)
    if not isinstance(value, list):
        return f"{path} is {_shown(value)}, not a list."
    misfits = [_misfit(item, shape[0], f"{path}[{index}]") for index, item in enumerate(value)]
    return next((misfit for misfit in misfits if misfit is not None), None)


def _misfit_of_object(value: Any, shape: Mapping[str, Shape], path: str) -> str | None:
    if not isinstance(value, dict):
        return f"{path} is {_shown(value)}, not an object."
    for name, field in shape.items():
        inner = f"{path}.{name}"
        if name not in value:
            if not isinstance(field, Maybe):
                return f"{inner} is missing."
        elif (misfit := _misfit(value[name], field, inner)) is not None:
            return misfit
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _any_of(values: Sequence[object]) -> str:
    return " or ".join(map(repr, values))


_NAMES: Final = {str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "an object"}

TEXT: Final[Shape] = (str, None)
FINISH: Final[Shape] = OneOf(("stop", "length", "tool_calls", "content_filter", "function_call"))

ERROR: Final[Shape] = {"error": {"message": str, "type": str, "param": TEXT, "code": TEXT}}

USAGE: Final[Shape] = {
    "prompt_tokens": int,
    "completion_tokens": int,
    "total_tokens": int,
    "prompt_tokens_details": Maybe(({"cached_tokens": Maybe((int, None))}, None)),
    "completion_tokens_details": Maybe(({"reasoning_tokens": Maybe((int, None))}, None)),
}

_TOP_LOGPROB: Final[Mapping[str, Shape]] = {"token": str, "logprob": float, "bytes": ([int], None)}
LOGPROBS: Final[Shape] = {"content": ([{**_TOP_LOGPROB, "top_logprobs": [_TOP_LOGPROB]}], None)}

TOOL_CALL: Final[Shape] = {"id": str, "type": OneOf(("function",)), "function": {"name": str, "arguments": str}}

_MESSAGE: Final[Mapping[str, Shape]] = {
    "role": OneOf(("assistant",)),
    "content": TEXT,
    "tool_calls": Maybe(([TOOL_CALL], None)),
}
_CHAT: Final[Mapping[str, Shape]] = {
    "id": str,
    "object": OneOf(("chat.completion",)),
    "created": int,
    "model": str,
    "usage": USAGE,
}
_CHOICE: Final[Mapping[str, Shape]] = {
    "index": int,
    "finish_reason": FINISH,
    "message": _MESSAGE,
    "logprobs": Maybe((LOGPROBS, None)),
}
CHAT: Final[Shape] = {**_CHAT, "choices": [_CHOICE]}
STORED_CHAT: Final[Shape] = {**_CHAT, "choices": [_CHOICE], "usage": Maybe((USAGE, None))}
CHAT_TO_THE_LETTER: Final[Shape] = {
    **_CHAT,
    "choices": [{**_CHOICE, "message": {**_MESSAGE, "refusal": TEXT}, "logprobs": (LOGPROBS, None)}],
}

CHUNK: Final[Shape] = {
    "id": str,
    "object": OneOf(("chat.completion.chunk",)),
    "created": int,
    "model": str,
    "choices": [
        {
            "index": int,
            "finish_reason": (FINISH, None),
            "logprobs": Maybe((LOGPROBS, None)),
            "delta": {
                "role": Maybe((OneOf(("assistant",)), None)),
                "content": Maybe(TEXT),
                "tool_calls": Maybe(([{"index": int}], None)),
            },
        }
    ],
    "usage": Maybe((USAGE, None)),
}

COMPLETION: Final[Shape] = {
    "id": str,
    "object": OneOf(("text_completion",)),
    "created": int,
    "model": str,
    "choices": [
        {
            "index": int,
            "text": str,
            "finish_reason": (OneOf(("stop", "length", "content_filter")), None),
            "logprobs": Maybe((dict, None)),
        }
    ],
    "usage": Maybe((USAGE, None)),
}

MODEL: Final[Shape] = {"id": str, "object": OneOf(("model",)), "created": int, "owned_by": str}
MODELS: Final[Shape] = {"object": OneOf(("list",)), "data": [MODEL]}

EMBEDDINGS: Final[Shape] = {
    "object": OneOf(("list",)),
    "model": str,
    "data": [{"object": OneOf(("embedding",)), "index": int, "embedding": ([float], str)}],
    "usage": {"prompt_tokens": int, "total_tokens": int},
}


def must_be_usage(usage: Json) -> None:
    """Raises Failed unless the counts are counts, and add up."""
    must_fit(usage, USAGE, "usage")
    counts = [usage["prompt_tokens"], usage["completion_tokens"]]
    require(min(counts) >= 0, f"A count of usage is negative: {usage}.")
    require(usage["total_tokens"] == sum(counts), f"total_tokens of usage is not the sum of the others: {usage}.")


def must_be_error(answer: Answer, *statuses: int, param: str | None = None, code: str | None = None) -> None:
    """Raises Failed unless it is an error with one of these statuses, which names `param` and has `code`."""
    wanted = " or ".join(map(str, statuses))
    require(answer.status in statuses, f"The status is {answer.status}, not {wanted}. It says: {answer.start()}")
    require(answer.error_message(), f"The error has no message: {answer.start()}")
    error = answer.json().get("error")
    require(isinstance(error, dict), f"There is no object `error` in {answer.start()}")
    if param is not None:
        found = error.get("param")
        named = isinstance(found, str) and (found == param or found.startswith((f"{param}.", f"{param}[")))
        require(named, f"param of the error is {found!r}, not {param!r}.")
    if code is not None:
        require(error.get("code") == code, f"code of the error is {error.get('code')!r}, not {code!r}.")
