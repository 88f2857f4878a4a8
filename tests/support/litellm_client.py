"""Run by tests/integration/test_litellm.py, in an environment with LiteLLM: says in JSON what a server answered it."""

import json
import sys
from typing import Any

import litellm  # type: ignore[import-not-found]

COMMON: dict[str, Any] = {
    "model": "openai/chatfleet-tiny",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "temperature": 0,
}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather at a place", "parameters": PARAMETERS},
}


def refusal() -> str:
    try:
        litellm.completion(messages=CAPITAL, top_p=7, **COMMON)
    except litellm.BadRequestError as exc:
        return str(exc)
    return ""


whole = litellm.completion(messages=CAPITAL, **COMMON)
parts = list(litellm.completion(messages=CAPITAL, stream=True, **COMMON))
called = litellm.completion(messages=WEATHER, tools=[TOOL], **COMMON).choices[0]
call = called.message.tool_calls[0].function
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "stream": "".join(part.choices[0].delta.content or "" for part in parts),
            "call": [call.name, json.loads(call.arguments)],
            "finish_reason": called.finish_reason,
            "usage": whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens,
            "errors": [refusal()],
        }
    )
)
