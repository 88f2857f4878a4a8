"""From the messages of a request to what a chat template reads."""

from collections.abc import Sequence
from typing import Any, Final

from pydantic_core import from_json

from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from chatfleet.protocol.chat import ChatMessage, MediaPart, RefusalPart, Tool

END_MARK: Final = "\ue000end of the final message\ue001"
"""Put behind the text of a message that is to be continued, to find its place in the prompt. Of private characters, so
that no message has it by chance."""
_ROLES: Final = {"function": "tool"}
"""Older spellings of roles that templates know."""


def template_messages(messages: Sequence[ChatMessage], *, knows_developer: bool) -> list[dict[str, Any]]:
    """Messages as plain dicts, content as text (text parts joined by line feeds, as vLLM does).

    `developer` becomes `system` unless the template knows it, `function` becomes `tool`; tool-call arguments become
    objects, as templates expect, where they are JSON. Raises UnsupportedParameter for parts that are not text.
    """
    return [_template_message(message, f"messages[{index}]", knows_developer) for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, path: str, knows_developer: bool) -> dict[str, Any]:
    role = _ROLES.get(message.role, message.role)
    if role == "developer" and not knows_developer:
        role = "system"
    rendered: dict[str, Any] = {"role": role, "content": message_text(message, path)}
    if message.audio is not None:
        raise UnsupportedParameter("This model takes text only, and has answered no audio.", param=f"{path}.audio")
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append((None, message.function_call))
    if calls:
        rendered["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": function.name, "arguments": _arguments(function.arguments)},
            }
            for call_id, function in calls
        ]
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    if reasoning is not None:
        rendered |= {"reasoning_content": reasoning, "thinking": reasoning}
    return rendered


def message_text(message: ChatMessage, path: str) -> str:
    """The text that a template gets. Raises UnsupportedParameter for what is no text; `path` is the message's own."""
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


def up_to_mark(prompt: str) -> str:
    """A rendered prompt up to where `END_MARK` stands, behind the text of its last message. Raises InvalidRequest."""
    before, mark, _ = prompt.rpartition(END_MARK)
    if not mark:
        raise InvalidRequest(
            "The final message cannot be continued: the model's chat template does not show its text as it is.",
            param="continue_final_message",
        )
    return before


def template_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Tools as the client sent them, unset fields left out."""
    return [tool.model_dump(exclude_unset=True) for tool in tools] if tools else None
