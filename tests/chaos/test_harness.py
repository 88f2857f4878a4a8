"""What the chaos runs rely on: that they would notice."""

import json
import random

import pytest

from support.chaos_answers import Answer, Malformed, Refused, differences, join_events, read_stream, read_whole
from support.chaos_fleet import Presence
from support.chaos_requests import simulated_asks
from support.chaos_schedule import (
    BLACKOUTS,
    CONTROLLER_KINDS,
    GATEWAY_KINDS,
    WIRE_KINDS,
    WORKER_KINDS,
    Rates,
    draw_schedule,
)
from support.wire import Json

RATES = Rates(workers_s=3.0, wire_s=0.4, gateways_s=8.0, controllers_s=5.0, blackouts=True)
ERROR = b'data: {"error":{"message":"m","type":"server_error","param":null,"code":"worker_failed"}}\n\n'


def chunk(content: str | None, *, role: bool = False, finish: str | None = None, **fields: object) -> Json:
    delta: Json = {"role": "assistant"} if role else {}
    if content is not None:
        delta["content"] = content
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**common, "choices": [choice], **fields}


def usage(tokens: int) -> Json:
    counts = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return chunk(None, choices=[], usage=counts)


GOOD = [chunk("", role=True), chunk("one"), chunk(" two"), chunk(None, finish="stop"), usage(2)]


def stream(parts: list[Json], end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(part).encode() for part in parts) + end


def read(body: bytes) -> Answer:
    answer = read_stream(200, body)
    assert isinstance(answer, Answer)
    return answer


def test_the_same_answer_in_other_pieces_is_no_difference() -> None:
    pieces = [chunk("", role=True), chunk("o"), chunk("ne two"), chunk(None, finish="stop"), usage(2)]
    comments = stream(pieces[:2], b": keep-alive\n\n") + stream(pieces[2:])
    assert differences(read(stream(GOOD)), read(comments)) == []


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([*GOOD[:2], *GOOD[3:]], id="an event lost"),
        pytest.param([*GOOD[:2], *GOOD[1:]], id="an event repeated"),
        pytest.param([*GOOD[:2], chunk(" tow"), *GOOD[3:]], id="text altered"),
        pytest.param([*GOOD[:3], chunk(None, finish="length"), GOOD[4]], id="another finish reason"),
        pytest.param([*GOOD[:4], usage(3)], id="other usage"),
        pytest.param(GOOD[:4], id="no usage"),
        pytest.param([chunk(""), *GOOD[1:]], id="no role"),
        pytest.param([GOOD[0], chunk("one", system_fingerprint="x"), *GOOD[2:4], usage(2)], id="other fields"),
    ],
)
def test_a_difference_is_found(parts: list[Json]) -> None:
    assert differences(read(stream(GOOD)), read(stream(parts)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(stream(GOOD, b""), id="no DONE"),
        pytest.param(stream(GOOD) + b"data: [DONE]\n\n", id="DONE twice"),
        pytest.param(stream(GOOD)[:-5], id="cut in the middle"),
        pytest.param(stream([*GOOD[:2], GOOD[0], *GOOD[2:]]), id="a second role"),
        pytest.param(stream([*GOOD[:2], {**GOOD[2], "id": "chatcmpl-2"}, *GOOD[3:]]), id="another id"),
        pytest.param(stream([*GOOD[:2], {**GOOD[2], "created": 2}, *GOOD[3:]]), id="another time"),
        pytest.param(stream([*GOOD[:3], usage(2)]), id="no end of a choice"),
        pytest.param(stream([*GOOD[:4], chunk("more")]), id="text behind the end"),
        pytest.param(stream(GOOD[:2], ERROR) + stream(GOOD[2:]), id="an error in the middle"),
        pytest.param(stream(GOOD[:2], b'data: {"error":"no"}\n\n'), id="an error of another form"),
        pytest.param(b":r 0,17\n" + stream(GOOD), id="token ids that were not stripped"),
    ],
)
def test_a_malformed_stream_is_found(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_stream(200, body)


def test_an_error_is_read_with_a_status_and_as_the_last_event() -> None:
    error = ERROR.removeprefix(b"data: ")
    for refused in (read_stream(503, error), read_whole(503, error), read_stream(200, stream(GOOD[:3], ERROR))):
        assert isinstance(refused, Refused) and refused.error["code"] == "worker_failed"
    with pytest.raises(Malformed):
        read_whole(500, b"Internal Server Error")


def test_events_of_several_choices_are_told_apart() -> None:
    parts = [{"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": []} for _ in range(4)]
    for number, part in enumerate(parts):
        last = "length" if number > 1 else None
        part["choices"] = [{"index": number % 2, "text": str(number), "logprobs": None, "finish_reason": last}]
    answer = join_events(parts)
    assert {index: choice.text for index, choice in answer.choices.items()} == {0: "02", 1: "13"}


def test_an_error_is_excused_only_while_no_worker_was_there() -> None:
    presence = Presence(2)
    for worker in (0, 1):
        assert presence.all_down(5.0, 9.0)
        presence.up(worker, 10.0)
        assert not presence.all_down(11.0, 12.0)
        presence.down(worker, 20.0)
        assert not presence.all_down(19.0, 30.0)
    presence.up(1, 40.0)
    assert presence.all_down(21.0, 39.0)
    assert not presence.all_down(21.0, 41.0)
    presence.up(0, 50.0)
    presence.down(1, 60.0)
    assert not presence.all_down(61.0, 65.0)


def test_a_seed_draws_the_same_schedule_and_every_kind_comes_up_in_a_minute() -> None:
    for seed in random.Random(0).sample(range(10**9), k=20):
        schedule = draw_schedule(seed, 60.0, RATES, workers=3, gateways=2, controllers=2)
        assert schedule == draw_schedule(seed, 60.0, RATES, workers=3, gateways=2, controllers=2)
        kinds = {incident.kind for incident in schedule}
        assert kinds == {*WORKER_KINDS, *WIRE_KINDS, *GATEWAY_KINDS, *CONTROLLER_KINDS, *BLACKOUTS}
        assert all(0 < incident.at_s < 60 for incident in schedule)
    assert schedule != draw_schedule(seed + 1, 60.0, RATES, workers=3, gateways=2, controllers=2)


def test_every_request_of_the_pool_is_another() -> None:
    asks = simulated_asks()
    assert len({ask.name for ask in asks}) == len(asks) >= 35
    assert len({ask.http for ask in asks}) == len(asks)
