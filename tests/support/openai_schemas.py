"""OpenAI's API description as JSON schemas that answers can be held against."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

from support.wire import Json

EXTENSIONS: Final = frozenset(
    {
        "max_model_len",
        "prompt_logprobs",
        "prompt_token_ids",
        "reasoning",
        "reasoning_content",
        "token_ids",
    }
)
"""vLLM's fields of answers, which OpenAI does not have."""

STORED: Final = frozenset(
    {
        "frequency_penalty",
        "input_user",
        "name",
        "presence_penalty",
        "request_id",
        "response_format",
        "seed",
        "temperature",
        "tool_call_id",
        "tool_choice",
        "tools",
        "top_p",
    }
)
"""What OpenAI's examples of stored completions and of their messages have beside the schemas."""

_PREFIX: Final = "#/components/schemas/"


@cache
def _described() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "data" / "openai" / "schemas.json"
    schemas: dict[str, Any] = json.loads(path.read_text())["components"]["schemas"]
    return schemas


def described(name: str) -> Json:
    """A schema as OpenAI describes it."""
    return copy.deepcopy(_described()[name])


def properties(name: str) -> frozenset[str]:
    """The fields of a described object."""

    def of(schema: Json) -> set[str]:
        whole = _merged(schema)
        options = [option for key in ("anyOf", "oneOf") for option in whole.get(key, [])]
        return set(whole.get("properties", {})).union(*map(of, options))

    return frozenset(of(_described()[name]))


def complaints(name: str, answer: Any, also: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with an answer that should be of the schema `name`: fields that are missing, of a wrong type or
    neither described nor named in `also`."""
    return [f"{error.json_path}: {error.message}" for error in _validator(name, also).iter_errors(answer)]


@cache
def _validator(name: str, also: frozenset[str]) -> Draft202012Validator:
    others = EXTENSIONS | also
    schemas = {each: _exact(schema, others) for each, schema in _as_served(_described()).items()}
    return Draft202012Validator({"$ref": f"{_PREFIX}{name}", "components": {"schemas": schemas}})


def _as_served(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas with what OpenAI's own server says beside them."""
    schemas = copy.deepcopy(schemas)
    completion = schemas["CreateCompletionResponse"]["properties"]
    choice = completion["choices"]["items"]["properties"]
    lists = choice["logprobs"]["anyOf"][0]["properties"]
    for nullable in (
        choice["finish_reason"],  # in a stream, up to the last chunk
        completion["usage"],  # likewise, where the stream's usage was asked for
        lists["token_logprobs"]["items"],  # the first token of a prompt has none
        lists["top_logprobs"]["items"],
        lists["top_logprobs"],  # with `logprobs: 0`
    ):
        nullable["nullable"] = True
    message = _merged(schemas["ChatCompletionMessageList"]["properties"]["data"]["items"])
    message["properties"]["role"] = {"type": "string"}  # it lists the messages of requests
    schemas["ChatCompletionMessageList"]["properties"]["data"]["items"] = message
    embedding = schemas["Embedding"]["properties"]
    embedding["embedding"] = {"anyOf": [embedding["embedding"], {"type": "string"}]}  # with `encoding_format: base64`
    return schemas


def _merged(schema: Json) -> Json:
    """An object that is described in parts, as one."""
    if "$ref" in schema:
        return _merged(_described()[schema["$ref"].removeprefix(_PREFIX)])
    if "allOf" not in schema:
        return schema
    parts = [_merged(part) for part in schema["allOf"]]
    return {
        "type": "object",
        "properties": {name: field for part in parts for name, field in part.get("properties", {}).items()},
        "required": [name for part in parts for name in part.get("required", [])],
    }


def _exact(value: Any, others: frozenset[str]) -> Any:
    """A schema of OpenAPI 3.0's habits in the words of JSON Schema, with no fields but those described and
    `others`."""
    if isinstance(value, list):
        return [_exact(item, others) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("allOf"), list):
        value = _merged(value)
    exact = {key: _exact(item, others) for key, item in value.items() if key != "nullable"}
    if isinstance(value.get("properties"), dict) and "additionalProperties" not in value:
        exact["properties"] = exact["properties"] | dict.fromkeys(others - value["properties"].keys(), True)
        exact["additionalProperties"] = False
    return {"anyOf": [exact, {"type": "null"}]} if value.get("nullable") is True else exact
