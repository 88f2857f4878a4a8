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
    given_out += splitter.finish()
    assert given_out == "".join(f"data: {event}\n\n" for event in events).encode()


def test_an_event_is_given_out_as_soon_as_it_is_whole() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert splitter.feed(b"\n") == b"data: b\n\n"
    assert splitter.feed(b"data: c\r\n\r\n") == b"data: c\n\n"


def test_what_is_left_at_the_end_is_an_event() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a") == b"" and splitter.finish() == b"data: a\n\n" and splitter.finish() == b""
    assert splitter.feed(b"data: a\n\n") == b"data: a\n\n" and splitter.finish() == b""


def test_an_event_without_end_is_refused() -> None:
    splitter = EventSplitter()
    with pytest.raises(WorkerFailed):
        for _ in range(20):
            splitter.feed(b"x" * (MAX_EVENT_BYTES // 10))
