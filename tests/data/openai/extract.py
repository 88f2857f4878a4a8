"""Takes out of OpenAI's API description what the tests hold requests and responses against.

    python extract.py openapi.json > schemas.json

Only the schemas of the endpoints that ChatFleet has, with all that they refer to, without what is there for readers.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOTS = (
    "ChatCompletionDeleted",
    "ChatCompletionList",
    "ChatCompletionMessageList",
    "CreateChatCompletionRequest",
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionRequest",
    "CreateCompletionResponse",
    "CreateEmbeddingRequest",
    "CreateEmbeddingResponse",
    "ErrorResponse",
    "ListModelsResponse",
    "Model",
)
PREFIX = "#/components/schemas/"
FOR_READERS = ("description", "title", "example", "examples", "externalDocs", "deprecated")


def bare(value: Any, *, names_properties: bool = False) -> Any:
    """Without what is there for readers; the names of properties may be those words."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: bare(item, names_properties=name == "properties" and not names_properties)
        for name, item in value.items()
        if names_properties or not (name in FOR_READERS or name.startswith("x-"))
    }


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].removeprefix(PREFIX)
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def extract(description: dict[str, Any]) -> dict[str, Any]:
    schemas = description["components"]["schemas"]
    found: dict[str, Any] = {}
    missing = list(ROOTS)
    while missing:
        name = missing.pop()
        if name not in found:
            found[name] = bare(schemas[name])
            missing += references(found[name])
    return {
        "info": {"title": "OpenAI API", "version": description["info"]["version"], "license": "MIT"},
        "components": {"schemas": dict(sorted(found.items()))},
    }


if __name__ == "__main__":
    print(json.dumps(extract(json.loads(Path(sys.argv[1]).read_text())), indent=1))
