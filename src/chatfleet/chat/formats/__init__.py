"""How models write their reasoning and their calls, by family: parsers, how a template tells the family, and the shape
of a call for constrained decoding."""

from chatfleet.chat.formats.parser import make_parser
from chatfleet.chat.formats.reader import Functions
from chatfleet.chat.formats.reasoning import REASONING_FORMATS, ReasoningFormat, find_reasoning_format
from chatfleet.chat.formats.tools import TOOL_FORMATS, CallIds, CallShape, ToolFormat, find_tool_format

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "CallIds",
    "CallShape",
    "Functions",
    "ReasoningFormat",
    "ToolFormat",
    "find_reasoning_format",
    "find_tool_format",
    "make_parser",
]
