"""How models write calls: one format for each family, found by name or from the chat template."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from chatfleet.chat.formats import harmony
from chatfleet.chat.formats.header_calls import Header, header_call, header_calls
from chatfleet.chat.formats.json_calls import json_calls
from chatfleet.chat.formats.markup_calls import Markup, markup_calls
from chatfleet.chat.formats.pythonic_calls import pythonic_calls
from chatfleet.chat.formats.reader import Reader
from chatfleet.chat.formats.source import Steps

CallIds = Literal["long", "short", "named"]
"""The ids of calls that templates take: any, only nine letters and digits, or functions.NAME:INDEX."""


@dataclass(frozen=True, slots=True)
class CallShape:
    """The constant texts of a turn's calls, for constrained decoding; the arguments between them are JSON.

    `begin`, then for each call `before_name`, its name, `after_name`, its arguments, `after_arguments`, with
    `separator` between calls, then `end`. The format's parser reads this, though a model may write calls otherwise.
    """

    trigger: str
    """Where this stands in free text, calls begin: the first part of `begin` and `before_name`."""
    before_name: str
    after_name: str
    after_arguments: str
    separator: str = ""
    begin: str = ""
    end: str = ""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A family's format. Names are those of vLLM's --tool-parser where it has one."""

    name: str
    openers: tuple[str, ...]
    """The texts at which a call may begin; `read` finds out whether one does."""
    read: Callable[[Reader, str], Steps[None]]
    """Reads from an opener, which it is given, on. What is no call is left in the source's record."""
    shape: CallShape
    marks: tuple[tuple[str, ...], ...]
    """Of what is found in the chat templates of such models: each of one of these."""
    visible: tuple[str, ...] = ()
    """The texts that the parser needs to see, also where they are control tokens."""
    call_ids: CallIds = "long"
    bans: tuple[str, ...] = ()
    """Texts that `free_text_bans` names where calls begin otherwise than at an opener."""

    @property
    def free_text_bans(self) -> tuple[str, ...]:
        """Text that contains none of these has no call for the parser: the trigger's and all looser spellings. None of
        them contains another."""
        bans = dict.fromkeys((*self.bans, *self.openers, self.shape.trigger))
        return tuple(ban for ban in bans if not any(other != ban and other in ban for other in bans))

    def matches(self, template: str) -> bool:
        """Whether a chat template (its source) is one of such a model. Of several the first in `TOOL_FORMATS` is."""
        return any(all(mark in template for mark in marks) for marks in self.marks)


def _json_shape(trigger: str, key: str = "arguments") -> dict[str, str]:
    return {"trigger": trigger, "before_name": '{"name": "', "after_name": f'", "{key}": ', "after_arguments": "}"}


def _tagged_json(reader: Reader, tag: str, close: str = "") -> Steps[None]:
    yield from reader.source.accept(tag)
    yield from json_calls(reader, close=close)


def _bare(reader: Reader, tag: str) -> Steps[None]:
    """Calls that no tag tells from text: JSON anywhere, Python only where a line begins (x[f(1)] is none)."""
    if tag == "[" and not reader.output.at_line_start:
        reader.source.take(1)
    elif tag in ("{", "["):
        yield from pythonic_calls(reader)
    else:
        yield from reader.source.accept(tag)
        yield from pythonic_calls(reader, close=_PYTHON_END)


_PYTHON_TAG, _PYTHON_START, _PYTHON_END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
_BARE_OPENERS = ("{", "[", _PYTHON_TAG, _PYTHON_START)
_BARE_VISIBLE = (_PYTHON_TAG, _PYTHON_START, _PYTHON_END)
_LLAMA_SHAPE = CallShape(**_json_shape('{"name"', "parameters"), separator="; ")


_TOOL_CALLS = "[TOOL_CALLS]"
_MISTRAL = Header(_TOOL_CALLS, "[ARGS]", name=lambda header: header.split("[CALL_ID]")[0])


def _mistral(reader: Reader, tag: str) -> Steps[None]:
    source = reader.source
    yield from source.accept(tag)
    yield from source.skip()
    if (yield from source.peek()) in ("{", "["):
        yield from json_calls(reader)
    else:
        yield from header_call(reader, _MISTRAL)


_KIMI = Header(
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    closes=("<|tool_call_end|>",),
    section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    name=lambda header: re.sub(r":\d+$", "", header).removeprefix("functions."),
)
_DEEPSEEK_V31 = Header(
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    closes=("<｜tool▁call▁end｜>",),
    section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
_DEEPSEEK_V3 = Header(
    _DEEPSEEK_V31.begin,
    "```json",
    closes=("```", *_DEEPSEEK_V31.closes),
    section=_DEEPSEEK_V31.section,
    name=lambda header: header.rpartition(_DEEPSEEK_V31.separator)[2],
)


def _header_format(
    name: str,
    header: Header,
    shape: CallShape,
    *marks: tuple[str, ...],
    separator: str = "",
    call_ids: CallIds = "long",
) -> ToolFormat:
    return ToolFormat(
        name,
        openers=(header.section[0], header.begin),
        read=lambda reader, _: header_calls(reader, header),
        shape=shape,
        marks=marks,
        visible=(*header.section, header.begin, separator or header.separator, *header.closes),
        call_ids=call_ids,
    )


_GLM = Markup(
    "<tool_call>",
    "</tool_call>",
    name=("", ""),
    key=("<arg_key>", "</arg_key>"),
    value=("<arg_value>", "</arg_value>"),
)
_QWEN3_CODER = Markup(
    "<tool_call>",
    "</tool_call>",
    name=("<function=", ">"),
    key=("<parameter=", ">"),
    value=("", "</parameter>"),
    function_end="</function>",
    value_ends=("<parameter=", "</function>", "</tool_call>"),
    lines=True,
)

_HERMES_SHAPE = CallShape(
    trigger="<tool_call>",
    before_name='<tool_call>\n{"name": "',
    after_name='", "arguments": ',
    after_arguments="}\n</tool_call>",
    separator="\n",
)
_HERMES_TAGS = ("<tool_call>", "</tool_call>")


def _markup_format(name: str, markup: Markup, *marks: tuple[str, ...]) -> ToolFormat:
    tags = (markup.begin, markup.end, *markup.name, *markup.key, *markup.value, markup.function_end)
    return ToolFormat(
        name,
        openers=tuple(filter(None, (markup.begin, markup.name[0]))),
        read=lambda reader, tag: markup_calls(reader, markup, tag),
        shape=_HERMES_SHAPE,
        marks=marks,
        visible=tuple(dict.fromkeys(filter(None, tags))),
    )


def _no_calls(reader: Reader, tag: str) -> Steps[None]:
    yield from reader.source.accept(tag)


_FUNCTOOLS, _PHI_END = "functools[", "<|/tool_call|>"


def _phi(reader: Reader, tag: str) -> Steps[None]:
    source = reader.source
    yield from source.accept(tag)
    listed = tag == _FUNCTOOLS
    if not listed:
        yield from source.skip()
        listed = yield from source.accept(_FUNCTOOLS)
    yield from json_calls(reader, close=_PHI_END, listed=listed)


# From the particular to the general: the first whose marks a template has is its format.
_FORMATS = (
    ToolFormat(
        "openai",
        openers=(),
        read=_no_calls,
        shape=CallShape(
            trigger=f"{harmony.CHANNEL}commentary to=",
            before_name=f"{harmony.CHANNEL}commentary to=functions.",
            after_name=f" {harmony.CONSTRAIN}json{harmony.MESSAGE}",
            after_arguments="",
            separator=f"{harmony.CALL}{harmony.START}assistant",
        ),
        marks=((harmony.CHANNEL, harmony.MESSAGE),),
        visible=harmony.VISIBLE,
        bans=harmony.RECIPIENTS,
    ),
    _header_format(
        "kimi_k2",
        _KIMI,
        CallShape(
            trigger=_KIMI.section[0],
            begin=_KIMI.section[0],
            before_name=f"{_KIMI.begin}functions.",
            after_name=f":0{_KIMI.separator}",
            after_arguments=_KIMI.closes[0],
            end=_KIMI.section[1],
        ),
        ("<|tool_calls_section_begin|>",),
        ("<|im_middle|>", "tool_declare"),
        call_ids="named",
    ),
    _header_format(
        "deepseek_v3",
        _DEEPSEEK_V3,
        CallShape(
            trigger=_DEEPSEEK_V3.section[0],
            begin=_DEEPSEEK_V3.section[0],
            before_name=f"{_DEEPSEEK_V3.begin}function{_DEEPSEEK_V31.separator}",
            after_name="\n```json\n",
            after_arguments=f"\n```{_DEEPSEEK_V31.closes[0]}",
            separator="\n",
            end=_DEEPSEEK_V3.section[1],
        ),
        ("<｜tool▁calls▁begin｜>", "```json"),
        separator=_DEEPSEEK_V31.separator,
    ),
    _header_format(
        "deepseek_v31",
        _DEEPSEEK_V31,
        CallShape(
            trigger=_DEEPSEEK_V31.section[0],
            begin=_DEEPSEEK_V31.section[0],
            before_name=_DEEPSEEK_V31.begin,
            after_name=_DEEPSEEK_V31.separator,
            after_arguments=_DEEPSEEK_V31.closes[0],
            end=_DEEPSEEK_V31.section[1],
        ),
        ("<｜tool▁calls▁begin｜>",),
    ),
    ToolFormat(
        "mistral_v11",
        openers=(_TOOL_CALLS,),
        read=_mistral,
        shape=CallShape(trigger=_TOOL_CALLS, before_name=_TOOL_CALLS, after_name="[ARGS]", after_arguments=""),
        marks=((_TOOL_CALLS, "[ARGS]"),),
        visible=(_TOOL_CALLS, "[ARGS]", "[CALL_ID]"),
        call_ids="short",
    ),
    ToolFormat(
        "mistral",
        openers=(_TOOL_CALLS,),
        read=_mistral,
        shape=CallShape(**_json_shape(_TOOL_CALLS), begin=f"{_TOOL_CALLS}[", separator=", ", end="]"),
        marks=((_TOOL_CALLS,),),
        visible=(_TOOL_CALLS, "[ARGS]", "[CALL_ID]"),
        call_ids="short",
    ),
    _markup_format("glm45", _GLM, ("<arg_key>", "<arg_value>")),
    _markup_format("qwen3_coder", _QWEN3_CODER, ("<function=", "<parameter=")),
    ToolFormat(
        "granite",
        openers=("<|tool_call|>", "<tool_call>"),
        read=partial(_tagged_json, close="</tool_call>"),
        shape=CallShape(**_json_shape("<|tool_call|>"), begin="<|tool_call|>[", separator=", ", end="]"),
        marks=(("<|start_of_role|>", "<|tool_call|>"),),
        visible=("<|tool_call|>", *_HERMES_TAGS),
    ),
    ToolFormat(
        "phi4_mini_json",
        openers=(_FUNCTOOLS, "<|tool_call|>"),
        read=_phi,
        shape=CallShape(**_json_shape(_FUNCTOOLS), begin=_FUNCTOOLS, separator=", ", end="]"),
        marks=((_FUNCTOOLS,), ("<|tool|>", "<|/tool|>")),
        visible=("<|tool_call|>", _PHI_END),
    ),
    ToolFormat(
        "hermes",
        openers=("<tool_call>",),
        read=partial(_tagged_json, close="</tool_call>"),
        shape=_HERMES_SHAPE,
        marks=(("<tool_call>",),),
        visible=_HERMES_TAGS,
    ),
    ToolFormat(
        "pythonic",
        openers=_BARE_OPENERS,
        read=_bare,
        shape=_LLAMA_SHAPE,
        marks=(("[func_name1(",), ("[func1(",), (_PYTHON_START,), ("<|header_start|>", "tool")),
        visible=_BARE_VISIBLE,
    ),
    ToolFormat(
        "llama3_json",
        openers=_BARE_OPENERS,
        read=_bare,
        shape=_LLAMA_SHAPE,
        marks=((_PYTHON_TAG,), ("<|start_header_id|>", '"parameters"')),
        visible=_BARE_VISIBLE,
    ),
)


TOOL_FORMATS = {known.name: known for known in _FORMATS}


def find_tool_format(template: str) -> ToolFormat | None:
    """The format that a chat template's source tells of; None where its model is not known to call functions."""
    return next((known for known in _FORMATS if known.matches(template)), None)
