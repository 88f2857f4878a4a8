"""Whole events out of pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.errors import WorkerFailed
from chatfleet.dispatch.events import MAX_EVENT_BYTES, EventSplitter

texts = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
ends = st.sampled_from(["\n", "\r\n", "\r"])


@given(events=st.lists(texts, max_size=8), end=ends, data=st.data())
def test_any_pieces_give_the_same_whole_events(events: list[str], end: str, data: st.DataObject) -> None:
    stream = "".join(f"data: {event}{end}{end}" for event in events).encode()
    splitter, given_out = EventSplitter(), b""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        piece, stream = stream[:size], stream[size:]
        out = splitter.feed(piece)
        assert not out or out.endswith(b"\n\n")
        given_out += out
    given_out += splitter.feed(b"data: [DONE]")
    given_out += splitter.finish(is_framed=True)
    assert given_out == "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def test_an_event_is_given_out_as_soon_as_it_is_whole() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert splitter.feed(b"\n") == b"data: b\n\n"
    assert splitter.feed(b"data: c\r\n\r\n") == b"data: c\n\n"


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\n\n", b"data: [DONE]\r\n\r"])
@pytest.mark.parametrize("is_framed", [True, False])
def test_a_stream_that_is_done_is_whole_even_without_its_last_blank_line(end: bytes, is_framed: bool) -> None:
    splitter = EventSplitter()
    given_out = splitter.feed(b"data: 1\n\n" + end)
    assert given_out + splitter.finish(is_framed=is_framed) == b"data: 1\n\ndata: [DONE]\n\n"


def test_a_stream_that_ends_elsewhere_has_broken_off_unless_its_framing_says_it_has_not() -> None:
    for rest in (b"data: hal", b"data: whole but not ended\n"):
        for is_framed in (True, False):
            splitter = EventSplitter()
            splitter.feed(b"data: 1\n\n" + rest)
            with pytest.raises(WorkerFailed):
                splitter.finish(is_framed=is_framed)
    splitter = EventSplitter()
    splitter.feed(b"data: 1\n\n")
    assert splitter.finish(is_framed=True) == b""
    with pytest.raises(WorkerFailed):
        splitter.finish(is_framed=False)


def test_an_event_without_end_is_refused() -> None:
    splitter = EventSplitter()
    with pytest.raises(WorkerFailed):
        for _ in range(20):
            splitter.feed(b"x" * (MAX_EVENT_BYTES // 10))
