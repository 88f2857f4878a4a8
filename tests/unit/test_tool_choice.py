"""Which functions an answer may call, and whether it must."""

from typing import Any

import pytest

from chatfleet.core.errors import InvalidRequest
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.worker.tool_choice import NO_TOOLS, plan_tools


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def names(**fields: Any) -> list[str]:
    return [tool.function.name for tool in plan_tools(request(**fields)).tools]


def test_without_tools_nothing_is_called() -> None:
    assert plan_tools(request()) == NO_TOOLS
    assert plan_tools(request(tools=[])) == NO_TOOLS
    assert plan_tools(request(tools=tools("f"), tool_choice="none")) == NO_TOOLS
    assert plan_tools(request(functions=[{"name": "f"}], function_call="none")) == NO_TOOLS


@pytest.mark.parametrize("choice", [None, "auto"])
def test_by_default_any_may_be_called(choice: str | None) -> None:
    plan = plan_tools(request(tools=tools("f", "g"), tool_choice=choice))
    assert [tool.function.name for tool in plan.tools] == ["f", "g"]
    assert (plan.must_call, plan.one_call, plan.is_named, plan.is_legacy) == (False, False, False, False)


def test_a_call_can_be_demanded() -> None:
    plan = plan_tools(request(tools=tools("f", "g"), tool_choice="required", parallel_tool_calls=False))
    assert (plan.must_call, plan.one_call, plan.is_named) == (True, True, False)
    plan = plan_tools(request(tools=tools("f", "g"), tool_choice=named("g")))
    assert (plan.must_call, plan.one_call, plan.is_named) == (True, True, True)
    assert names(tools=tools("f", "g"), tool_choice=named("g")) == ["g"]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_tools_can_be_allowed(mode: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named("g"), named("h")]}}
    plan = plan_tools(request(tools=tools("f", "g", "h"), tool_choice=choice))
    assert [tool.function.name for tool in plan.tools] == ["g", "h"]
    assert plan.must_call == (mode == "required")
    assert plan.is_restricted and plan.is_enforced
    choice["allowed_tools"]["tools"].append(named("f"))
    assert not plan_tools(request(tools=tools("f", "g", "h"), tool_choice=choice)).is_restricted


def test_functions_are_tools_that_are_called_once() -> None:
    plan = plan_tools(request(functions=[{"name": "f"}, {"name": "g"}], function_call={"name": "g"}))
    assert [tool.function.name for tool in plan.tools] == ["g"]
    assert (plan.must_call, plan.one_call, plan.is_named, plan.is_legacy) == (True, True, True, True)
    assert not plan_tools(request(functions=[{"name": "f"}])).must_call


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": named("f")}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": tools("f", "f")}, "tools"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "functions"),
        ({"functions": [{"name": "f"}], "tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}], "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": tools("f"), "function_call": "none"}, "function_call"),
        ({"tools": tools("f"), "functions": [{"name": "f"}]}, "functions"),
        ({"tools": tools("f"), "tool_choice": named("g")}, "tool_choice"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        (
            {
                "tools": tools("f"),
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("g")]}},
            },
            "tool_choice",
        ),
    ],
)
def test_a_choice_among_functions_that_there_are_not_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plan_tools(request(**fields))
    assert refused.value.param == param
