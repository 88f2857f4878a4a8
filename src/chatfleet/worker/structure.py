"""What the text of an answer has to be: one grammar out of response formats, calls that must be, and reasoning."""

import json
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from chatfleet.chat import grammar as grammars
from chatfleet.chat.formats import REASONING_FORMATS, TOOL_FORMATS, CallShape, ReasoningFormat, ToolFormat
from chatfleet.chat.grammar import Grammar
from chatfleet.chat.grammar.budget import budget
from chatfleet.core.errors import InvalidRequest
from chatfleet.engines.base import GrammarSyntax
from chatfleet.protocol.common import SamplingFields, StructuredOutputs
from chatfleet.worker.tool_choice import ToolPlan

_NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar, and how the engine wants it written."""

    grammar: Grammar
    syntax: GrammarSyntax
    text: str
    param: str
    """The request's field that asks for it."""

    def behind(self, text: str) -> str:
        """The grammar of what may follow `text`. Raises ValueError where it is not how an answer begins."""
        return _written(grammars.remaining(self.grammar, text), self.syntax)


class Wanted(NamedTuple):
    """What a request says of its answers' form: the field, how it says it, and what."""

    param: str
    kind: str
    value: Any


def wanted_structure(request: SamplingFields) -> Wanted | None:
    """Raises InvalidRequest where it is said twice, or not in JSON."""
    response_format, structured = request.response_format, request.structured_outputs
    wanted = None
    if response_format is not None and response_format.type != "text":
        value: Any = None
        if response_format.type == "structural_tag":
            value = response_format.model_dump(exclude_unset=True)
        elif response_format.json_schema is not None:
            value = response_format.json_schema.json_schema
        kind = "json_object" if value is None else response_format.type
        wanted = Wanted("response_format", kind, value)
    if structured is None:
        return wanted
    if wanted is not None:
        raise InvalidRequest(
            "'response_format' and 'structured_outputs' both say what the answer must be: give one of them.",
            param="structured_outputs",
        )
    return _vllm_structure(structured)


def _vllm_structure(structured: StructuredOutputs) -> Wanted:
    if structured.json_value is not None:
        return Wanted("structured_outputs.json", "json_schema", _parsed(structured.json_value, "json"))
    if structured.regex is not None:
        return Wanted("structured_outputs.regex", "regex", structured.regex)
    if structured.choice is not None:
        return Wanted("structured_outputs.choice", "choice", structured.choice)
    if structured.grammar is not None:
        return Wanted("structured_outputs.grammar", "grammar", structured.grammar)
    if structured.structural_tag is not None:
        tag = _parsed(structured.structural_tag, "structural_tag")
        return Wanted("structured_outputs.structural_tag", "structural_tag", tag)
    return Wanted("structured_outputs.json_object", "json_object", None)


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as exc:
        param = f"structured_outputs.{name}"
        raise InvalidRequest(f"'{param}' is not valid JSON: {exc}.", param=param) from exc


def describe(
    wanted: Wanted | None,
    plan: ToolPlan,
    tools: ToolFormat | None,
    reasoning: ReasoningFormat | None,
    *,
    opened: bool,
) -> str:
    """All that a constraint is made of, in JSON."""
    functions = [
        {"name": f.name, "parameters": f.parameters if plan.must_call or f.strict else None, "strict": bool(f.strict)}
        for f in (tool.function for tool in plan.tools)
    ]
    description = {
        "wanted": wanted,
        "functions": functions,
        "param": plan.param,
        "asked_by": plan.param if wanted is None else wanted.param,
        "must_call": plan.must_call,
        "one_call": plan.one_call,
        "tools": tools and tools.name,
        "reasoning": reasoning and reasoning.name,
        "opened": opened,
    }
    return json.dumps(description)


def compile_constraint(description: str, syntax: GrammarSyntax) -> Constraint:
    """The constraint of a description. Takes seconds at most. Raises InvalidRequest for what no grammar can say."""
    said = json.loads(description)
    with budget(said["asked_by"]):
        return _compiled(said, syntax)


def _compiled(said: dict[str, Any], syntax: GrammarSyntax) -> Constraint:
    content = None if said["wanted"] is None else _content(Wanted(*said["wanted"]))
    reasoning = None if said["reasoning"] is None else REASONING_FORMATS[said["reasoning"]]
    if reasoning is not None and content is not None and reasoning.answer_start:
        content = grammars.sequence(grammars.literal(reasoning.answer_start), content)
    grammar = content
    if said["functions"]:
        tools = TOOL_FORMATS[said["tools"]]
        calls = _calls(tools.shape, said)
        if content is not None and not said["must_call"]:
            grammar = grammars.alternatives(content, calls)
        elif said["must_call"]:
            grammar = calls
        else:
            grammar = grammars.sequence(grammars.text_without(tools.free_text_bans), grammars.repeat(calls, 0, 1))
    assert grammar is not None
    if reasoning is not None:
        grammar = _behind_reasoning(grammar, reasoning, opened=said["opened"])
    return Constraint(grammar, syntax, _written(grammar, syntax), said["asked_by"])


def _calls(shape: CallShape, said: dict[str, Any]) -> Grammar:
    """Calls of the functions, as the model's format has them: one at least."""
    call = grammars.alternatives(
        *(
            grammars.sequence(
                grammars.literal(f"{shape.before_name}{function['name']}{shape.after_name}"),
                _arguments(function, said),
                grammars.literal(shape.after_arguments),
            )
            for function in said["functions"]
        )
    )
    more = grammars.repeat(grammars.sequence(grammars.literal(shape.separator), call))
    calls = call if said["one_call"] else grammars.sequence(call, more)
    return grammars.sequence(grammars.literal(shape.begin), calls, grammars.literal(shape.end))


def _arguments(function: dict[str, Any], said: dict[str, Any]) -> Grammar:
    if not function["strict"] and not said["must_call"]:
        return grammars.json_object()
    schema = function["parameters"] or _NO_PARAMETERS
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise InvalidRequest(
            f"The parameters of '{function['name']}' must be of type object, for arguments are one.",
            param=said["param"],
        )
    return grammars.from_json_schema({**schema, "type": "object"}, param=said["param"])


def _behind_reasoning(grammar: Grammar, reasoning: ReasoningFormat, *, opened: bool) -> Grammar:
    """The same behind the end of a reasoning, which there need not be where the prompt has not opened one."""
    thinking = grammars.sequence(
        grammars.text_without(reasoning.ends),
        grammars.literal(reasoning.end),
        grammars.literal("") if reasoning.answer_start else grammars.repeat(grammars.literal("\n"), 0, 2),
        grammar,
    )
    if opened:
        return thinking
    return grammars.alternatives(grammar, grammars.sequence(grammars.literal(reasoning.start), thinking))


def _content(wanted: Wanted) -> Grammar:
    match wanted.kind:
        case "json_schema":
            return grammars.from_json_schema(wanted.value, param=wanted.param)
        case "regex":
            return grammars.from_regex(wanted.value, param=wanted.param)
        case "choice":
            return grammars.from_choices(wanted.value, param=wanted.param)
        case "grammar":
            return grammars.from_ebnf(wanted.value, param=wanted.param)
        case "structural_tag":
            return grammars.from_structural_tag(wanted.value, param=wanted.param)
        case _:
            return grammars.json_object()


def _written(grammar: Grammar, syntax: GrammarSyntax) -> str:
    return grammars.to_ebnf(grammar) if syntax == "ebnf" else grammars.to_lark(grammar)
