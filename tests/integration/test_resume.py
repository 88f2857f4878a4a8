"""Streams that one worker has begun and another goes on with: nothing is lost, said twice, or changed."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import psutil
import pytest

from support.processes import WorkerProcess
from support.recovery import IDS, RESUME, Kept, blocks, kept, merged
from support.suites import quick
from support.wire import PATIENCE_S, Json, RawConnection, error_object, events, failed, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NOBODY = ("--controller-url", "http://127.0.0.1:9")
"""Makes a worker one of a fleet, though of one whose controller is away."""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[httpx.Client]]:
    """Two workers at a pace at which nearly every token is an event of its own."""
    arguments = ("--engine", "simulated", "--sim-itl-ms", "2", *NOBODY)
    with WorkerProcess(*arguments) as one, WorkerProcess(*arguments) as two, one.http() as first, two.http() as second:
        yield [first, second]


def begun(http: httpx.Client, path: str, request: Json) -> list[str]:
    """The event blocks of a stream that can be gone on with."""
    response = http.post(path, json=request, headers=IDS)
    assert response.status_code == 200, response.text
    return blocks(response.text)


def gone_on(http: httpx.Client, path: str, request: Json, known: Kept) -> list[str]:
    response = http.post(
        path, content=known.resume_body(request), headers={**RESUME, "content-type": "application/json"}
    )
    assert response.status_code == 200, response.text
    return blocks(response.text)


def cycle(token_ids: Sequence[int]) -> Json:
    """The logit biases that make the simulated engine say these tokens in turn, with a frequency penalty."""
    return {
        "logit_bias": {str(token_id): 100 - rank / 100 for rank, token_id in enumerate(token_ids)},
        "frequency_penalty": 2,
    }


def chat(**fields: Any) -> tuple[str, Json]:
    return CHAT, {"messages": user("hi"), "stream": True, "max_tokens": 14, **fields}


def completion(**fields: Any) -> tuple[str, Json]:
    return COMPLETIONS, {"prompt": "hi", "stream": True, "max_tokens": 10, **fields}


USAGE: Json = {"stream_options": {"include_usage": True}}
SHIP = cycle("é🚢".encode())

SCHEMA: Json = {
    "type": "object",
    "properties": {"é": {"type": "string", "maxLength": 3}, "n": {"enum": [1, 2]}},
    "required": ["é", "n"],
    "additionalProperties": False,
}
FUNCTION: Json = {"name": "f", "parameters": SCHEMA, "strict": True}
TOOLS: Json = {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 400}
FORMAT: Json = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}

CASES = {
    "completion": completion(**USAGE),
    "echo": completion(prompt=["hi", "é"], n=2, echo=True, logprobs=2, seed=4, temperature=1.5, **USAGE),
    "completion that stops": completion(stop=["acca"], logprobs=3, **cycle(b"abc"), n=2, **USAGE),
    "json schema": chat(response_format=FORMAT, n=2, seed=1, temperature=1.5, max_tokens=80, logprobs=True, **USAGE),
    "json schema cut off": chat(response_format=FORMAT, max_tokens=9, **USAGE),
    "regex": chat(structured_outputs={"regex": "[aé🚢]{9}"}, **(USAGE | {"max_tokens": 60})),
    "a tool": chat(**TOOLS, tool_choice="required", parallel_tool_calls=False, **USAGE),
    "a tool by name": chat(**TOOLS, tool_choice={"type": "function", "function": {"name": "f"}}, logprobs=True),
    "a function": chat(functions=[FUNCTION], function_call={"name": "f"}, max_tokens=400),
    "token ids": chat(return_token_ids=True, n=2),
    "stop that shows": chat(stop=["bbba"], include_stop_str_in_output=True, **cycle(b"abc"), **USAGE),
    "control tokens that show": chat(skip_special_tokens=False, logprobs=True, **cycle([256, 49, 258, 50])),
    "chat": chat(),
    "choices": chat(n=2, **USAGE),
    "usage": chat(**USAGE),
    "seed": chat(n=2, seed=7, temperature=1.5, top_p=0.9, **USAGE),
    "penalties": chat(seed=3, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3, temperature=2),
    "natural ends": chat(max_tokens=30, logit_bias={"257": 11.5}, temperature=1.5, seed=5, n=3, logprobs=True, **USAGE),
    "log probabilities": chat(n=2, logprobs=True, top_logprobs=3, **USAGE),
    "stop held back": chat(stop=["ccbx", "xx"], logprobs=True, top_logprobs=1, **cycle(b"abc")),
    "stop": chat(n=2, stop=["bbba", "acb"], logprobs=True, **cycle(b"abc"), **USAGE),
    "split characters": chat(**SHIP, logprobs=True, **USAGE),
    "an unfinished character": chat(**(SHIP | {"max_tokens": 13})),
    "an unfinished character that stops": chat(**(SHIP | {"max_tokens": 13}), stop=["�"], **USAGE),
    "held back to the end": chat(stop=["bbacx"], logprobs=True, **cycle(b"abc"), **USAGE),
    "control tokens": chat(stop=["21x"], logprobs=True, **cycle([256, 49, 258, 50])),
    "stop token": chat(stop_token_ids=[ord("c")], min_tokens=4, logprobs=True, **cycle(b"abc"), **USAGE),
    "one token": chat(max_tokens=1, n=2, **USAGE),
    "echo without log probabilities": completion(prompt=["hi", "ho"], echo=True, stop=["e"]),
    "prompt of tokens": completion(prompt=[[104, 105, 257], [258]], echo=True, logprobs=1, **USAGE),
    "nothing but echo": completion(prompt=["hi", "ho"], echo=True, logprobs=1, max_tokens=0, **USAGE),
}
cases = pytest.mark.parametrize(("path", "request_body"), quick(20, CASES.values()), ids=CASES)


@cases
def test_a_stream_goes_on_exactly_after_any_of_its_events(
    workers: list[httpx.Client], path: str, request_body: Json
) -> None:
    whole = begun(workers[0], path, request_body)
    expected = merged(kept(whole).data)
    assert len(whole) > 1
    for cut in range(1, len(whole)):
        known = kept(whole[:cut])
        if not known.is_whole:
            for block in gone_on(workers[1], path, request_body, known):
                known.take(block)
        assert known.is_whole
        assert merged(known.data) == expected, cut


def without_call_ids(data: Sequence[str]) -> list[str]:
    """They are made of the answer's id."""
    return [re.sub(r'"call_[0-9a-f]{24}"', '"call"', line) for line in data]


@pytest.mark.parametrize(("path", "request_body"), quick(14, CASES.values()), ids=CASES)
def test_a_stream_that_loses_its_worker_after_every_event_is_the_same(
    workers: list[httpx.Client], path: str, request_body: Json
) -> None:
    whole = kept(begun(workers[0], path, request_body))
    known = kept(begun(workers[0], path, request_body)[:1])
    hops = 0
    while not known.is_whole:
        hops += 1
        known.take(gone_on(workers[hops % 2], path, request_body, known)[0])
    same = json.loads(json.dumps(whole.data).replace(whole.id, known.id))
    same = [line.replace(f'"created":{whole.created}', f'"created":{known.created}') for line in same]
    assert merged(without_call_ids(known.data)) == merged(without_call_ids(same))
    assert {i: c["token_ids"] for i, c in known.choices.items()} == {
        i: c["token_ids"] for i, c in whole.choices.items()
    }
    assert hops >= 1


@cases
def test_without_the_header_a_stream_has_no_comments_and_says_the_same(
    workers: list[httpx.Client], path: str, request_body: Json
) -> None:
    response = workers[0].post(path, json=request_body)
    plain = kept(blocks(response.text))
    assert events(response.content) == plain.data
    assert not plain.id and not plain.choices
    with_lines = kept(begun(workers[0], path, request_body))
    assert with_lines.id and with_lines.choices
    texts = [{i: (c["text"], c["logprobs"]) for i, c in merged(k.data)["choices"].items()} for k in (plain, with_lines)]
    assert texts[0] == texts[1]


def test_choices_that_are_over_count_in_the_usage_and_are_not_generated_again(workers: list[httpx.Client]) -> None:
    path, request = chat(n=2, **USAGE)
    known = kept(begun(workers[0], path, request)[:-2])
    assert all(choice["finish_reason"] == "length" for choice in known.choices.values())
    before = generated_tokens(workers[1])
    usage, end = gone_on(workers[1], path, request, known)
    assert json.loads(usage.partition("data: ")[2])["usage"]["completion_tokens"] == 2 * 14
    assert end == "data: [DONE]\n\n"
    assert generated_tokens(workers[1]) == before


def test_tokens_that_another_worker_generated_are_not_counted_as_generated_here(workers: list[httpx.Client]) -> None:
    path, request = chat()
    known, delivered = Kept(), 14
    while delivered == 14:  # on a busy machine one event may have them all
        known = kept(begun(workers[0], path, request)[:2])
        delivered = len(known.choices[0]["token_ids"])
    assert delivered > 0
    before = generated_tokens(workers[1])
    gone_on(workers[1], path, request, known)
    assert generated_tokens(workers[1]) == before + 14 - delivered


def generated_tokens(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:generation_tokens_total{"))


def test_a_stream_that_had_not_begun_a_choice_begins_it(workers: list[httpx.Client]) -> None:
    path, request = chat(n=3)
    known = Kept(id="chatcmpl-x", created=5)
    for block in gone_on(workers[1], path, request, known):
        known.take(block)
    whole = merged(kept(begun(workers[0], path, request)).data)
    assert merged(known.data)["choices"] == whole["choices"]
    assert json.loads(known.data[0])["id"] == "chatcmpl-x" and json.loads(known.data[0])["created"] == 5


# --- with a model ---

QUESTION: Json = {"messages": user("What is the capital of France?"), "stream": True, **USAGE}


@pytest.fixture(scope="module")
def exact_workers() -> Iterator[list[httpx.Client]]:
    """Two workers of the bundled model in deterministic mode."""
    arguments = ("--deterministic", *NOBODY)
    with WorkerProcess(*arguments) as one, WorkerProcess(*arguments) as two, one.http() as first, two.http() as second:
        yield [first, second]


@pytest.mark.parametrize(
    "sampling",
    quick(
        1,
        [
            {"temperature": 0, "logprobs": True},
            {"temperature": 0, "n": 2, "stop": [" of"]},
            {"temperature": 0, "max_tokens": 9, "frequency_penalty": 1.5},
            {"temperature": 1.2, "seed": 5, "n": 2, "max_tokens": 12},
        ],
    ),
    ids=["greedy", "stop", "penalty", "seed"],
)
def test_in_deterministic_mode_a_models_stream_goes_on_exactly(
    exact_workers: list[httpx.Client], sampling: Json
) -> None:
    request = {**QUESTION, **sampling}
    whole = begun(exact_workers[0], CHAT, request)
    expected = merged(kept(whole).data)
    logprobs = taken_out(expected)
    for cut in range(1, len(whole)):
        known = kept(whole[:cut])
        if not known.is_whole:
            for block in gone_on(exact_workers[1], CHAT, request, known):
                known.take(block)
        answer = merged(known.data)
        assert taken_out(answer) == pytest.approx(logprobs, abs=1e-3), cut
        assert answer == expected, cut


def taken_out(answer: Json) -> list[float]:
    """The log probabilities, which are nearly the same only: a prompt that is read at once is added up in another
    order."""
    entries = [entry for choice in answer["choices"].values() for entry in choice["logprobs"].get("content", ())]
    return [entry.pop("logprob") for entry in entries]


@pytest.mark.long
def test_at_default_precision_a_models_stream_goes_on_with_sense(tiny_fleet: list[httpx.Client]) -> None:
    request = {**QUESTION, "temperature": 0}
    whole = begun(tiny_fleet[0], CHAT, request)
    for cut in range(1, len(whole)):
        known = kept(whole[:cut])
        delivered = list(known.data)
        if not known.is_whole:
            for block in gone_on(tiny_fleet[1], CHAT, request, known):
                known.take(block)
        assert known.data[: len(delivered)] == delivered
        answer = merged(known.data)
        (choice,) = answer["choices"].values()
        assert "Paris" in choice["text"]
        assert choice["marks"][-1]["finish_reason"] == "stop"
        assert answer["usage"]["usage"]["completion_tokens"] == len(known.choices[0]["token_ids"])


@pytest.fixture(scope="module")
def tiny_fleet() -> Iterator[list[httpx.Client]]:
    """Two workers of the bundled model."""
    with WorkerProcess(*NOBODY) as one, WorkerProcess(*NOBODY) as two, one.http() as first, two.http() as second:
        yield [first, second]


# --- what is refused ---


def resumed(http: httpx.Client, path: str, request: Any, **resume: Any) -> httpx.Response:
    body = {"resume": {"id": "chatcmpl-x", "created": 1, "choices": [], **resume}, "request": request}
    return http.post(path, json=body, headers=RESUME)


@pytest.mark.parametrize(
    ("resume", "said"),
    [
        ({"id": "a b"}, "its id"),
        ({"id": "x" * 129}, "its id"),
        ({"created": -1}, "its time"),
        ({"choices": [{"index": 2, "token_ids": []}]}, "beyond the 2"),
        ({"choices": [{"index": -1, "token_ids": []}]}, "beyond the 2"),
        ({"choices": [{"index": 0, "token_ids": []}] * 2}, "twice"),
        ({"choices": [{"index": 0, "token_ids": [259]}]}, "vocabulary"),
        ({"choices": [{"index": 0, "token_ids": [-1]}]}, "vocabulary"),
        ({"choices": [{"index": 0, "token_ids": [2**70]}]}, "vocabulary"),
        ({"choices": [{"index": 0, "token_ids": [97] * 15}]}, "15 tokens of at most 14"),
        ({"choices": [{"index": 0, "token_ids": [97], "pending": [[98, -1.0, []]]}]}, "log probabilities"),
        ({"choices": [{"index": 0, "token_ids": [97], "pending": [[97, -1.0, []]] * 2}]}, "log probabilities"),
    ],
)
@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
def test_a_stream_that_does_not_fit_its_request_is_refused(
    workers: list[httpx.Client], api: str, resume: Json, said: str
) -> None:
    _, request = chat(n=2, logprobs=True) if api == CHAT else completion(n=2, logprobs=1, max_tokens=14)
    error = failed(resumed(workers[0], api, request, **resume), 400, param="resume")
    assert said in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"request": {}}',
        b'{"resume": {"id": "a", "created": 1, "choices": []}}',
        b'{"resume": {"id": "a", "created": "1", "choices": []}, "request": {}}',
        b'{"resume": {"id": "a", "created": 1, "choices": [{"index": 0, "token_ids": [1.5]}]}, "request": {}}',
        b'{"resume": {"id": "a", "created": 1, "choices": [{"index": 0, "token_ids": "a"}]}, "request": {}}',
        b'{"resume": {"id": "\xff", "created": 1, "choices": []}, "request": {}}',
        b'{"resume": {"id": "a", "created": 1, "choices": []}, "request": 7}',
        b'{"resume": {"id": "a", "created": 1, "choices": []}, "x": ' + b"[" * 100_000,
        b'{"resume": {"id": "a", "created": 1, "choices": []}, "request": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    ],
)
def test_a_body_that_is_none_to_go_on_with_is_refused(workers: list[httpx.Client], body: bytes) -> None:
    headers = {**RESUME, "content-type": "application/json"}
    failed(workers[0].post(CHAT, content=body, headers=headers), 400)


def test_only_streams_can_be_gone_on_with(workers: list[httpx.Client]) -> None:
    for path, request in (chat(stream=False), completion(stream=None)):
        failed(resumed(workers[0], path, request), 400, param="stream")


@pytest.mark.parametrize("headers", [{}, IDS])
@pytest.mark.parametrize("value", [None, {"id": "a", "created": 1, "choices": []}])
def test_clients_cannot_make_up_a_stream(workers: list[httpx.Client], headers: dict[str, str], value: Any) -> None:
    for path, request in (chat(foo=1, resume=value), completion(foo=1, resume=value)):
        error = failed(workers[0].post(path, json=request, headers=headers), 400, param="resume")
        assert "internal" in error["message"]
        failed(resumed(workers[0], path, request), 400, param="resume")


def test_under_strict_a_made_up_stream_is_refused_by_its_name() -> None:
    with WorkerProcess("--engine", "simulated", "--strict") as worker, worker.http() as http:
        for path, request in (chat(foo=1, resume={}), completion(foo=1, resume={})):
            error = failed(http.post(path, json=request), 400, param="resume")
            assert "internal" in error["message"]


def test_a_worker_of_no_fleet_goes_on_with_nothing(simulated_worker: httpx.Client) -> None:
    path, request = chat()
    known = kept(begun(simulated_worker, path, request)[:2])
    headers = {**RESUME, "content-type": "application/json"}
    error = failed(simulated_worker.post(path, content=known.resume_body(request), headers=headers), 400)
    assert "--controller-url" in error["message"]


@pytest.fixture(scope="module")
def simulated_worker() -> Iterator[httpx.Client]:
    with WorkerProcess("--engine", "simulated") as worker, worker.http() as http:
        yield http


@pytest.mark.parametrize("value", ["0", "-3", "7", "", "high", "1.5", "1" * 400])
def test_a_priority_of_any_kind_harms_nothing(simulated_worker: httpx.Client, value: str) -> None:
    path, request = chat(stream=False)
    assert simulated_worker.post(path, json=request, headers={"x-chatfleet-priority": value}).status_code == 200


def test_what_a_gateway_would_ask_in_other_words_is_not_asked(simulated_worker: httpx.Client) -> None:
    path, request = chat()
    response = simulated_worker.post(path, json=request, headers={"x-chatfleet-recovery": "please"})
    assert events(response.content)[-1] == "[DONE]"


# --- how it ends ---


def cut_off(connection: RawConnection) -> bytes:
    """What is left of a chunked answer whose connection ends in its middle."""
    rest = connection.rest()
    assert not rest.endswith(b"0\r\n\r\n")
    return rest


@pytest.mark.parametrize("headers", [IDS, RESUME])
def test_a_stream_whose_engine_dies_is_cut_and_goes_on_elsewhere(headers: dict[str, str]) -> None:
    path, request = chat(**USAGE)
    arguments = ("--engine", "simulated", "--sim-itl-ms", "3600000", *NOBODY)
    with (
        WorkerProcess(*arguments) as dying,
        WorkerProcess("--engine", "simulated", *NOBODY) as other,
        other.http() as http,
        RawConnection(dying.url) as connection,
    ):
        body = request if headers is IDS else json.loads(Kept(id="chatcmpl-x", created=1).resume_body(request))
        connection.post(path, body, *(f"{name}: {value}" for name, value in headers.items()))
        assert connection.read_head()[0] == 200
        received = next(connection.read_chunks())
        (engine,) = psutil.Process(dying.pid).children()
        engine.kill()
        assert b"error" not in cut_off(connection)
        known = kept(blocks(received.decode()))
        assert known.choices[0]["token_ids"]
        for block in gone_on(http, path, request, known):
            known.take(block)
        whole = merged(kept(begun(http, path, request)).data)
        assert merged(known.data)["choices"] == whole["choices"]
        assert merged(known.data)["usage"]["usage"] == whole["usage"]["usage"]
        dying.stop()
        assert "a stream is cut" in dying.output
        assert "Traceback" not in dying.output and "ASGI" not in dying.output


def test_a_stream_whose_worker_is_made_to_end_is_cut() -> None:
    path, request = chat()
    with (
        WorkerProcess("--engine", "simulated", "--sim-itl-ms", "3600000", *NOBODY) as worker,
        RawConnection(worker.url) as connection,
    ):
        connection.post(path, request, "x-chatfleet-recovery: ids").read_head()
        next(connection.read_chunks())
        process = psutil.Process(worker.pid)
        process.terminate()
        deadline = time.monotonic() + PATIENCE_S
        while is_listening(process):
            assert time.monotonic() < deadline
        process.terminate()
        assert cut_off(connection) == b"\r\n"  # the end of the chunk
        assert worker.stop() == 0
        assert "Traceback" not in worker.output


def is_listening(process: psutil.Process) -> bool:
    try:
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return False


def test_a_fault_before_the_first_event_is_a_status_and_later_a_cut() -> None:
    path, request = chat()
    with WorkerProcess("--engine", "simulated", "--sim-failure-rate", "1") as worker, worker.http() as http:
        kinds: set[str] = set()
        while len(kinds) < 2:  # a fault comes before the first token or later, by the request's number
            try:
                failed(http.post(path, json=request, headers=IDS), 500, code="engine_error")
                kinds.add("before")
            except httpx.RemoteProtocolError:
                kinds.add("inside")
        plain = ""
        while not plain.startswith("data: "):
            plain = http.post(path, json=request).text
        assert error_object(events(plain)[-1])["code"] == "engine_error"
