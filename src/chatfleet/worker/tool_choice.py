"""Which functions an answer may call, and whether it must: from the several ways in which a request says so. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from chatfleet.core.errors import InvalidRequest, UnsupportedParameter
from chatfleet.protocol.chat import (
    AllowedToolsChoice,
    ChatCompletionRequest,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    Tool,
)


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What holds for the calls of each choice. `is_legacy` says that the request has `functions`, which allow one call
    in the older form; `is_named` that it is settled which function is called; `is_restricted` that the request has
    others, which must not be called."""

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    is_named: bool = False
    one_call: bool = False
    is_legacy: bool = False
    is_restricted: bool = False

    @property
    def is_strict(self) -> bool:
        """Whether arguments have to be what some function's schema says."""
        return any(tool.function.strict for tool in self.tools)

    @property
    def is_enforced(self) -> bool:
        """Whether a grammar has to see to it who is called, or with what."""
        return self.must_call or self.is_restricted or self.is_strict

    @property
    def param(self) -> str:
        """The request's field that asks for the calls."""
        return "functions" if self.is_legacy else "tools"


NO_TOOLS = ToolPlan()


def plan_tools(request: ChatCompletionRequest) -> ToolPlan:
    """Raises InvalidRequest for a choice among functions that there are not."""
    if request.functions:
        if request.tools:
            raise InvalidRequest("'functions' is the older form of 'tools': give one of them.", param="functions")
        for param, value in (
            ("tool_choice", request.tool_choice),
            ("parallel_tool_calls", request.parallel_tool_calls),
        ):
            if value is not None:
                raise InvalidRequest(f"'{param}' goes with 'tools', not with 'functions'.", param=param)
        return _plan_functions(request.functions, request.function_call)
    if request.function_call is not None and (request.tools or request.function_call != "none"):
        raise InvalidRequest("'function_call' goes with 'functions'.", param="function_call")
    tools = tuple(request.tools or ())
    choice = request.tool_choice
    if not tools:
        if choice not in (None, "none"):
            raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")
        if request.parallel_tool_calls is not None:
            raise InvalidRequest("'parallel_tool_calls' needs 'tools'.", param="parallel_tool_calls")
        return NO_TOOLS
    _check_names([tool.function for tool in tools], "tools")
    one_call = request.parallel_tool_calls is False
    if choice == "none":
        return NO_TOOLS
    if isinstance(choice, NamedTool):
        named = _chosen(tools, [choice.function.name], "tool_choice")
        return ToolPlan(named, must_call=True, is_named=True, one_call=True)
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        chosen = _chosen(tools, [tool.function.name for tool in allowed.tools], "tool_choice")
        return ToolPlan(
            chosen,
            must_call=allowed.mode == "required",
            one_call=one_call,
            is_restricted=len(chosen) < len(tools),
        )
    return ToolPlan(tools, must_call=choice == "required", one_call=one_call)


def _plan_functions(functions: Sequence[FunctionDefinition], choice: str | FunctionName | None) -> ToolPlan:
    _check_names(functions, "functions")
    tools = tuple(Tool(type="function", function=function) for function in functions)
    if choice == "none":
        return NO_TOOLS
    if isinstance(choice, FunctionName):
        named = _chosen(tools, [choice.name], "function_call")
        return ToolPlan(named, must_call=True, is_named=True, one_call=True, is_legacy=True)
    return ToolPlan(tools, one_call=True, is_legacy=True)


def _check_names(functions: Sequence[FunctionDefinition], param: str) -> None:
    names = [function.name for function in functions]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InvalidRequest(f"'{param}' has the function '{repeated}' twice.", param=param)


def _chosen(tools: Sequence[Tool], names: Sequence[str], param: str) -> tuple[Tool, ...]:
    chosen = tuple(tool for tool in tools if tool.function.name in names)
    missing = set(names) - {tool.function.name for tool in chosen}
    if missing:
        raise InvalidRequest(f"'{param}' names the function '{min(missing)}', which is not given.", param=param)
    return chosen


def refuse_without_format(plan: ToolPlan) -> None:
    """Raises UnsupportedParameter: nobody knows how this model writes calls."""
    raise UnsupportedParameter(
        "How this model calls functions is not known: its chat template has the form of none that we know. Leave "
        f"'{plan.param}' out, or start the worker with --tool-parser.",
        param=plan.param,
    )
