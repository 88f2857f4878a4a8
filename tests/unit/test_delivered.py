"""What is kept of a stream, and the requests that have another worker go on with it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.gateway.data_plane.continuation import Continuation
from chatfleet.gateway.data_plane.delivered import DONE, CannotGoOn, Delivered, DeliveredIds
from chatfleet.protocol.resume import ResumeBody

ROOM = 10_000
START = b":r chatcmpl-1 1700000000\n"


def resumed(delivered: DeliveredIds, request: bytes = b'{"a": 1}') -> dict[str, Any]:
    body = delivered.resume_body(request)
    msgspec.json.decode(body, type=ResumeBody)
    found: dict[str, Any] = json.loads(body)
    assert found["request"] == json.loads(request)
    resume: dict[str, Any] = found["resume"]
    return resume


def test_the_client_sees_no_ids_and_another_worker_gets_all_of_them() -> None:
    delivered = DeliveredIds(ROOM)
    assert delivered.add(START + b":r 0\ndata: role\n\n") == b"data: role\n\n"
    assert delivered.add(b":r 0,17,29\ndata: a\n\n") == b"data: a\n\n"
    assert delivered.add(b":r 1\ndata: role\n\n:r 1,5\ndata: b\n\n") == b"data: role\n\ndata: b\n\n"
    assert delivered.add(b":r 0,2 stop\ndata: c\n\n") == b"data: c\n\n"
    assert resumed(delivered) == {
        "id": "chatcmpl-1",
        "created": 1700000000,
        "choices": [
            {"index": 0, "token_ids": [17, 29, 2], "finish_reason": "stop"},
            {"index": 1, "token_ids": [5]},
        ],
    }


def test_only_the_last_word_on_what_is_held_back_counts() -> None:
    delivered = DeliveredIds(ROOM)
    delivered.add(START + b":r 0,1,2 [[2,-0.5,[[7,-1.0]]]]\ndata: a\n\n")
    assert resumed(delivered)["choices"][0]["pending"] == [[2, -0.5, [[7, -1.0]]]]
    delivered.add(b":r 0,3\ndata: b\n\n")
    assert resumed(delivered)["choices"] == [{"index": 0, "token_ids": [1, 2, 3]}]


def test_past_its_bound_nothing_is_kept_and_all_is_still_passed_on() -> None:
    delivered = DeliveredIds(100)
    delivered.add(START + b":r 0\ndata: x\n\n")
    for _ in range(100):
        assert delivered.add(b":r 0,12345\ndata: x\n\n") == b"data: x\n\n"
    with pytest.raises(CannotGoOn, match="recovery-buffer-kb"):
        delivered.resume_body(b"{}")
    assert delivered.tail() == b"data: x\n\ndata: x\n\n"


@pytest.mark.parametrize("lines", [b":r nonsense here\n", b":r 0,x\n", b":r 0,1 [1,\n", b":r \n", b""])
def test_a_worker_that_does_not_tell_as_agreed_cannot_be_followed(lines: bytes) -> None:
    delivered = DeliveredIds(ROOM)
    assert delivered.add(START * bool(lines) + lines + b"data: x\n\n") == b"data: x\n\n"
    with pytest.raises(CannotGoOn):
        delivered.resume_body(b"{}")


def test_what_lacks_its_last_event_only_needs_no_worker() -> None:
    delivered = DeliveredIds(ROOM)
    delivered.add(START + b":r 0,1 stop\ndata: x\n\n")
    assert not delivered.lacks_end_only(b"")
    delivered.add(b":r usage\ndata: usage\n\n")
    assert delivered.lacks_end_only(b"") and not delivered.is_done
    delivered.add(DONE)
    assert not delivered.lacks_end_only(b"") and delivered.is_done


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2**31 - 1), max_size=4), st.text(max_size=20)), min_size=1
)


@given(EVENTS, st.data())
def test_however_events_come_together_ids_and_text_stay_the_same(
    events: list[tuple[int, list[int], str]], data: st.DataObject
) -> None:
    blocks = []
    shown = b""
    ids: dict[int, list[int]] = {}
    for number, (index, token_ids, text) in enumerate(events):
        line = b":r %d%b\n" % (index, b"".join(b",%d" % token_id for token_id in token_ids))
        event = b"data: %b\n\n" % json.dumps({"content": text, "more": ":r 1,2"}).encode()
        blocks.append((START if number == 0 else b"") + line + event)
        shown += event
        ids.setdefault(index, []).extend(token_ids)
    delivered = DeliveredIds(2**20)
    got = b""
    while blocks:
        count = data.draw(st.integers(1, len(blocks)))
        got += delivered.add(b"".join(blocks[:count]))
        del blocks[:count]
    assert got == shown
    assert {choice["index"]: choice["token_ids"] for choice in resumed(delivered)["choices"]} == ids


# --- servers that are not ours ---


def chunk(text: str = "", *, id: str = "one", role: bool = False, finish: str | None = None, **more: Any) -> bytes:
    delta = {"role": "assistant", "content": text} if role else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": id, "created": 1, "choices": choices, **more}).encode() + b"\n\n"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def delivered(*events: bytes, room: int = ROOM) -> Delivered:
    kept = Delivered(room)
    for event in events:
        assert kept.add(event) == event
    return kept


def parsed(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix(b"data: ")) for event in events.split(b"\n\n")[:-1] if event != DONE[:-2]]


def test_the_text_so_far_becomes_an_unfinished_message() -> None:
    before = delivered(chunk(role=True), chunk("Once "), chunk("upon"))
    request = json.loads(Continuation(before, body(max_tokens=10, min_tokens=1), ROOM).request)
    assert request["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once upon"}]
    assert (request["continue_final_message"], request["add_generation_prompt"]) == (True, False)
    assert (request["max_tokens"], request["min_tokens"]) == (8, 0)


def test_what_is_left_is_a_number_to_the_last_token() -> None:
    before = delivered(*(chunk("a") for _ in range(5)))
    sent = Continuation(before, body(max_tokens=5, min_tokens=2), ROOM).request
    request = json.loads(sent)
    assert (request["max_tokens"], request["min_tokens"]) == (1, 0)
    assert b"true" not in sent.replace(b'"continue_final_message":true', b"") and b'"min_tokens":0' in sent


def test_only_the_end_of_one_choice_is_added_to_what_is_complete() -> None:
    complete = delivered(chunk("a"), chunk(finish="stop"))
    assert complete.lacks_end_only(body()) and not complete.lacks_end_only(body(n=2))
    assert not complete.lacks_end_only(body(stream_options={"include_usage": True}))
    assert not delivered(chunk("a")).lacks_end_only(body())


@pytest.mark.parametrize("odd", [b'{"choices": [null, 1]}', b'{"choices": {}}', b'{"usage": 3}', b"[1]", b"{", b""])
def test_what_is_no_chunk_is_passed_on(odd: bytes) -> None:
    going_on = Continuation(delivered(chunk("a")), body(), ROOM)
    assert going_on.add(b"data: " + odd + b"\n\n").endswith(b"\n\n")


def test_a_message_that_was_unfinished_already_grows() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once "}]
    asked = body(messages=messages, continue_final_message=True)
    request = json.loads(Continuation(delivered(chunk("upon")), asked, ROOM).request)
    assert request["messages"] == [messages[0], {"role": "assistant", "content": "Once upon"}]


def test_a_prompt_grows_by_the_text() -> None:
    events = [b'data: {"id": "one", "choices": [{"index": 0, "text": " upon"}]}\n\n']
    request = json.loads(Continuation(delivered(*events), b'{"prompt": "Once", "max_tokens": 5}', ROOM).request)
    assert request == {"prompt": "Once upon", "max_tokens": 4}


def test_what_has_shown_nothing_is_asked_again_as_it_was() -> None:
    asked = body()
    assert Continuation(delivered(chunk(role=True)), asked, ROOM).request == asked


def test_what_goes_on_looks_like_what_was() -> None:
    going_on = Continuation(delivered(chunk(role=True), chunk("a")), body(), ROOM)
    assert going_on.add(chunk(role=True, id="two")) == b""
    events = going_on.add(chunk("b", id="two", role=True) + chunk("c", id="two", finish="stop"))
    assert [event["id"] for event in parsed(events)] == ["one", "one"]
    assert [event["choices"][0]["delta"] for event in parsed(events)] == [{"content": "b"}, {"content": "c"}]
    used = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
    usage = parsed(going_on.add(chunk(id="two", usage=used)))[0]["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert going_on.add(DONE) == DONE and going_on.is_done


def test_it_may_go_on_a_third_time() -> None:
    second = Continuation(delivered(chunk(role=True), chunk("a")), body(max_tokens=9), ROOM)
    second.add(chunk("b", id="two"))
    third = Continuation(second, body(max_tokens=9), ROOM)
    request = json.loads(third.request)
    assert request["messages"][-1]["content"] == "ab" and request["max_tokens"] == 7
    assert parsed(third.add(chunk("c", id="three")))[0]["id"] == "one"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{}]},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 1},
        {"repetition_penalty": 1.1},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"logit_bias": {"1": 1}},
        {"messages": "none"},
        {"logprobs": 0},
        {"messages": None, "prompt": "Once"},
    ],
)
def test_what_would_not_go_on_is_not_tried(fields: dict[str, Any]) -> None:
    with pytest.raises(CannotGoOn):
        Continuation(delivered(chunk("a")), body(**fields), ROOM)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{}]}}]}\n\n',
        b'data: {"choices": [{"index": 1, "delta": {"content": "a"}}]}\n\n',
        b"data: 1\n\n",
        b"data: nothing\n\n",
        b'data: {"error": {"message": "no"}}\n\n',
        chunk(finish="stop"),
    ],
)
def test_only_one_plain_text_goes_on(event: bytes) -> None:
    with pytest.raises(CannotGoOn):
        Continuation(delivered(chunk("a"), event), body(), ROOM)


def test_more_than_is_kept_does_not_go_on() -> None:
    kept = Delivered(100)
    for _ in range(10):
        kept.add(chunk("a"))
    with pytest.raises(CannotGoOn, match="recovery-buffer-kb"):
        Continuation(kept, body(), ROOM)
