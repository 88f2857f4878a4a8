"""Renders chats exactly as a server does: the Jinja template in the sandbox that transformers uses."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
SOURCE = (HERE / "chat_template.jinja").read_text(encoding="utf-8")

Message = dict[str, Any]
Tool = dict[str, Any]


def _tojson(value: Any) -> str:
    # Jinja's own filter escapes < > & ' and sorts keys; transformers replaces it by this one.
    return json.dumps(value, ensure_ascii=False)


@cache
def _compiled() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    return environment.from_string(SOURCE)


def render(messages: list[Message], tools: list[Tool] | None = None, *, add_generation_prompt: bool = False) -> str:
    """The prompt text of a chat; ends in an open assistant turn with `add_generation_prompt`."""
    return _compiled().render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)
