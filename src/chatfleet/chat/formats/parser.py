"""From formats to the parser of one answer."""

from chatfleet.chat.events import Content, OutputEvent, OutputParser
from chatfleet.chat.formats.harmony import read_harmony
from chatfleet.chat.formats.reader import Functions, Reader
from chatfleet.chat.formats.reasoning import ReasoningFormat
from chatfleet.chat.formats.source import Steps
from chatfleet.chat.formats.tools import ToolFormat


def make_parser(
    reasoning: ReasoningFormat | None,
    tools: ToolFormat | None,
    functions: Functions,
    *,
    opened: bool,
) -> OutputParser:
    """The parser of one answer; with neither format all of it is Content.

    `functions` are those that the answer may call; `opened` says that the prompt has begun the reasoning. Nothing is
    lost: what looked like a call and is none comes as text, and of a call that is cut off behind its name, or goes
    wrong there, what came of its arguments. Calls are looked for behind the reasoning only: reasoning that never comes
    to its end tag is reasoning to the end, also where that looks like a call. Harmony is both formats at once,
    whichever of them is given.
    """
    if reasoning is None and tools is None:
        return _PlainText()
    reader = Reader(functions)
    if (tools and tools.name == "openai") or (reasoning and reasoning.name == "openai_gptoss"):
        return _Parser(reader, read_harmony(reader, opened=opened, calls=tools is not None))
    return _Parser(reader, _read(reader, reasoning, tools, opened=opened))


class _PlainText:
    def feed(self, text: str) -> list[OutputEvent]:
        return [Content(text)] if text else []

    def finish(self) -> list[OutputEvent]:
        return []


class _Parser:
    """Runs a reader of a format as far as the text goes."""

    def __init__(self, reader: Reader, steps: Steps[None]) -> None:
        self._reader = reader
        self._steps = steps

    def feed(self, text: str) -> list[OutputEvent]:
        self._reader.source.add(text)
        next(self._steps, None)
        return self._reader.output.drain()

    def finish(self) -> list[OutputEvent]:
        self._reader.source.ended = True
        next(self._steps, None)
        self._reader.output.finish()
        return self._reader.output.drain()


def _read(reader: Reader, reasoning: ReasoningFormat | None, tools: ToolFormat | None, *, opened: bool) -> Steps[None]:
    """Reasoning where there is some, then text and calls to the end."""
    source, output = reader.source, reader.output
    answer_end = ""
    if reasoning is not None and (yield from _reasoning(reader, reasoning, opened=opened)):
        answer_start, answer_end = reasoning.answer_tags
        yield from source.skip()
        if answer_start and not (yield from source.accept(answer_start)):
            answer_end = ""
    openers = tools.openers if tools else ()
    while (
        tag := (yield from source.until((*openers, answer_end) if answer_end else openers, output.content))
    ) is not None:
        if tag == answer_end:
            yield from source.accept(tag)
            output.separate()
        elif tools is not None:
            source.record()
            yield from tools.read(reader, tag)
            output.content(source.recorded())


def _reasoning(reader: Reader, reasoning: ReasoningFormat, *, opened: bool) -> Steps[bool]:
    """Read reasoning, if any. Returns whether it came to its end."""
    source, output = reader.source, reader.output
    source.record()
    yield from source.skip()
    started = False
    for start in reasoning.starts:
        started = started or (yield from source.accept(start))
    space = source.recorded()
    if not started and not opened:
        output.content(space)
        return False
    output.separate()
    end = yield from source.until(reasoning.ends, output.reasoning)
    if end is None:
        return False
    yield from source.accept(end)
    output.separate()
    return True
