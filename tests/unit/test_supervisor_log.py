"""The log that a supervisor makes of what its parts print: any bytes, one readable line each."""

import io

from hypothesis import given
from hypothesis import strategies as st

from chatfleet.supervisor.log import MAX_LINE_BYTES, FleetLog, LineSplitter, LogConsole, shown


def lines(*pieces: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()


def test_lines_come_whole_however_they_arrive() -> None:
    assert lines(b"on", b"e\ntw", b"o\n\nthree") == ["one", "two", "", "three"]


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20), max_size=10), st.integers(1, 7))
def test_any_cuts_give_the_same_lines(texts: list[str], size: int) -> None:
    data = "".join(f"{text}\n" for text in texts).encode()
    assert lines(*(data[at : at + size] for at in range(0, len(data), size))) == texts


def test_a_line_without_end_is_shown_in_bounded_pieces() -> None:
    endless = b"x" * (3 * MAX_LINE_BYTES + 5)
    assert "".join(lines(endless)) == endless.decode()
    assert max(map(len, lines(endless + b"\n" + endless))) <= MAX_LINE_BYTES
    splitter = LineSplitter()
    assert [line for _ in range(100) for line in splitter.feed(b"y" * 1024)], "it waits for ever for the end of a line"


@given(st.binary(max_size=2000))
def test_no_bytes_break_it_or_reach_the_terminal_as_commands(data: bytes) -> None:
    for line in lines(data):
        assert not any(char != "\t" and (ord(char) < 32 or 127 <= ord(char) < 160) for char in line)


def test_control_characters_are_shown_as_their_escapes() -> None:
    assert shown("a\x1b[31mb\x9b\u202ec") == r"a\x1b[31mb\x9b\u202ec"
    assert shown("grün\tmüßig 模型") == "grün\tmüßig 模型"


def test_a_line_that_was_written_over_is_shown_as_it_was_at_last() -> None:
    assert lines(b" 1%\r50%\r100%\nWindows\r\n") == ["100%", "Windows"]


def console() -> LogConsole:
    log_console = LogConsole()
    log_console.file = io.StringIO()
    return log_console


def test_names_are_aligned_and_text_is_not_taken_for_markup() -> None:
    target = console()
    log = FleetLog(target, ["gateway", "chatfleet-tiny"])
    log.line("gateway", "[bold]x[/nonsense] :smile: " + "long " * 100)
    log.line("chatfleet-tiny", "y")
    log.say("z")
    output = target.file.getvalue()  # type: ignore[attr-defined]
    assert output.splitlines() == [
        "gateway        | [bold]x[/nonsense] :smile: " + "long " * 100,
        "chatfleet-tiny | y",
        "chatfleet      | z",
    ]


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    target = console()
    target.file = Gone()
    log = FleetLog(target, ["gateway"])
    log.line("gateway", "one")
    log.line("gateway", "two")
