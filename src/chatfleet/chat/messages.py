"""From the messages of a request to what a chat template reads."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from chatfleet.core.errors import UnsupportedParameter
from chatfleet.protocol.chat import ChatMessage, MediaPart, RefusalPart, Tool


def template_messages(messages: Sequence[ChatMessage], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Messages as plain dicts, content as text (text parts joined by line feeds, as vLLM does).

    `developer` becomes `system` unless the template knows it; tool-call arguments become objects, as
    templates expect, where they are JSON. Raises UnsupportedParameter for parts that are not text.
    """
    return [_template_message(message, f"messages[{index}]", knows_developer) for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, path: str, knows_developer: bool) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not knows_developer else message.role
    rendered: dict[str, Any] = {"role": role, "content": _text(message, path)}
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return rendered


def _text(message: ChatMessage, path: str) -> str:
    if message.content is None:
        return message.refusal or ""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for index, part in enumerate(message.content):
        if isinstance(part, MediaPart):
            raise UnsupportedParameter(
                f"This model takes text only, not {part.type}.", param=f"{path}.content[{index}]"
            )
        texts.append(part.refusal if isinstance(part, RefusalPart) else part.text)
    return "\n".join(texts)


def _arguments(arguments: str) -> Any:
    """A parser that has a depth limit and takes no lone surrogates, which no tokenizer takes either."""
    try:
        return from_json(arguments)
    except ValueError:
        return arguments


def template_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools as the client sent them, unset fields left out."""
    return [tool.model_dump(exclude_unset=True) for tool in tools] if tools else None
