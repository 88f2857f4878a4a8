"""Events as they are found, and the rule for white space between them."""

from chatfleet.chat.events import CallArguments, CallBegin, Content, OutputEvent, Reasoning
from chatfleet.chat.formats.source import SPACE

_Text = type[Content] | type[Reasoning]


class Output:
    """Collects events.

    White space that only separates is dropped: what stands directly before or behind a call, or at either end of
    the reasoning. All other white space is kept, also at both ends of an answer without calls.
    """

    def __init__(self) -> None:
        self._found: list[tuple[_Text | CallBegin | int, str]] = []
        self._index = -1
        self._kind: _Text = Content
        self._space: list[str] = []
        self._behind = False
        self._inside_line = False
        self._shown: _Text | None = None
        self._joint = ""

    def content(self, text: str) -> None:
        self._text(Content, text)

    def reasoning(self, text: str) -> None:
        self._text(Reasoning, text)

    def begin(self, name: str) -> None:
        """A call begins. `arguments` are its until the next one begins."""
        self._index += 1
        self._found.append((CallBegin(self._index, name), ""))
        self._shown = None
        self.separate()

    def arguments(self, fragment: str) -> None:
        self._found.append((self._index, fragment))

    def separate(self) -> None:
        """Something other than text stands here: white space on both sides of it means nothing."""
        self._space.clear()
        self._joint = ""
        self._behind = True
        self._inside_line = False

    def paragraph(self, kind: _Text) -> None:
        """Text begins that has a line feed between it and text of its kind before it."""
        self.separate()
        if self._shown is kind:
            self._joint = "\n"

    @property
    def at_line_start(self) -> bool:
        """Whether nothing but white space stands between here and the beginning of a line, or what is no text."""
        return not self._inside_line or any("\n" in space for space in self._space)

    def drain(self) -> list[OutputEvent]:
        """The events since the last time, fragments of one kind in one."""
        events: list[OutputEvent] = []
        pieces: list[str] = []
        for position, (kind, text) in enumerate(self._found):
            if isinstance(kind, CallBegin):
                events.append(kind)
                continue
            pieces.append(text)
            if position + 1 == len(self._found) or self._found[position + 1][0] != kind:
                whole = "".join(pieces)
                pieces.clear()
                if whole:
                    events.append(CallArguments(kind, whole) if isinstance(kind, int) else kind(whole))
        self._found.clear()
        return events

    def finish(self) -> None:
        """The end of the text: white space that was held back shows."""
        self._found.append((self._kind, "".join(self._space)))
        self._space.clear()

    def _text(self, kind: _Text, text: str) -> None:
        if self._behind:
            text = text.lstrip(SPACE)
        if not text:
            return
        self._kind, self._behind = kind, False
        shown = text.rstrip(SPACE)
        if shown:
            self._found.append((kind, self._joint + "".join(self._space) + shown))
            self._space.clear()
            self._joint = ""
            self._inside_line = True
            self._shown = kind
        self._space.append(text[len(shown) :])
