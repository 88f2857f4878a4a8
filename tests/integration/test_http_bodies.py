"""What a gateway refuses of a JSON body before it looks for a worker: what it could read otherwise than the worker."""

import json

import pytest

from support.raw_upstream import CHAT, COMPLETIONS, EMBEDDINGS, RawFleet, hot
from support.wire import error_object

PATHS = [CHAT, COMPLETIONS, EMBEDDINGS, "/v1/tokenize", "/v1/detokenize", "/"]
LARGE = b'"user": "' + b"x" * 400_000 + b'", '

TWICE = {
    "model": [
        b'{"model": "one", "model": "two"}',
        b'{"model": "one", "model": "one"}',
        b'{"model": "one", "messages": [{"model": "x"}], "model": "two"}',
        b'{"model": "one", "mod\\u0065l": "two"}',
        b'{"\\u006d\\u006F\\u0064\\u0065\\u006C": "two", "model": "one"}',
        b'{"mode\\u006c": "one", "\\u006dodel": "two"}',
        b'{"model":"one","model":null}',
        b'{"model":"one"\n,\t"model"\r: "two"}',
        b'{"x": "\\\\", "model": "one", "model": "two"}',
        b'{"x": "\\"", "model": "one", "y": "\\\\\\"", "model": "two"}',
        b'{"model": "one", "model": {"model": "two"}}',
        b"{" + LARGE + b'"model": "one", "model": "two"}',
        b'{"model": "one", ' + LARGE + b'"mod\\u0065l": "two"}',
    ],
    "stream": [
        b'{"model": "one", "stream": true, "stream": false}',
        b'{"stream": true, "model": "one", "stream": true}',
        b'{"model": "one", "stream": false, "\\u0073tream": true}',
    ],
}
ONCE = [
    b'{"model": "one", "metadata": {"model": "x", "stream": true}}',
    b'{"metadata": {"model": "x", "model": "y"}, "model": "one"}',
    b'{"model": "one", "messages": [{"role": "user", "content": "\\"model\\": \\"a\\", \\"stream\\": true"}]}',
    b'{"model": "one", "x": "model", "y": ["model", "stream"], "z": {"stream": 1}}',
    b'{"model": "one", "Model": "two", "model ": "three", "models": "four", "STREAM": 1}',
    b'{"x": "\\"model\\": {", "model": "one", "y": "}, \\\\"}',
    b'{"mod\\u0065l": "one", "tools": [{"function": {"parameters": {"properties": {"model": {}, "stream": {}}}}}]}',
]

NOT_UTF_8 = {
    "a continuation alone": b"\x80",
    "a start alone": b"\xc3",
    "an overlong slash": b"\xc0\xaf",
    "an overlong NUL": b"\xe0\x80\x80",
    "half a surrogate pair": b"\xed\xa0\x80",
    "past the last character": b"\xf4\x90\x80\x80",
    "latin-1": b"caf\xe9",
    "a byte that never is": b"\xff",
    "a character that is cut": b"\xf0\x9f\x98",
}
PLACES = {
    "a message": b'{"model": "one", "messages": [{"role": "user", "content": "%b"}]}',
    "a key": b'{"model": "one", "%b": 1}',
    "a key below": b'{"model": "one", "metadata": {"%b": 1}}',
    "the model": b'{"model": "one%b"}',
    "the first text": b'{"user": "%b", "model": "one"}',
    "a large body": b'{"model": "one", ' + LARGE + b'"user": "%b"}',
    "behind the object": b'{"model": "one"} %b',
}

NO_OBJECTS = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"1",
    b'"model"',
    b'{"model": "one"} {}',
    b'{"model": "one",}',
    b"{'a': 1}",
]


def refused(fleet: RawFleet, body: bytes, path: str = CHAT) -> str:
    """The message. The connection stays usable."""
    with fleet.connect() as connection:
        response = connection.send(hot(body, path=path)).read_response()
        assert response.status == 400, (body[:200], response)
        assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
        error = error_object(response.body)
        assert error["type"] == "invalid_request_error"
        assert connection.send(hot(b'{"model": "one"}', path=path)).read_response().status == 200
    assert fleet.upstream.calls.pop().body == b'{"model": "one"}'
    assert not fleet.upstream.calls
    message: str = error["message"]
    return message


def forwarded(fleet: RawFleet, body: bytes, path: str = CHAT) -> None:
    with fleet.connect() as connection:
        response = connection.send(hot(body, path=path)).read_response()
    assert response.status == 200, (body[:200], response)
    assert fleet.upstream.calls.pop().body == body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", TWICE)
def test_a_key_that_decides_the_route_comes_once(fleet: RawFleet, key: str, path: str) -> None:
    for body in TWICE[key]:
        assert key in refused(fleet, body, path), body


@pytest.mark.parametrize("path", PATHS)
def test_the_same_word_elsewhere_is_no_such_key(fleet: RawFleet, path: str) -> None:
    for body in ONCE:
        forwarded(fleet, body, path)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bytes_name", NOT_UTF_8)
def test_what_is_not_utf_8_is_refused_wherever_it_is(fleet: RawFleet, bytes_name: str, place: str) -> None:
    refused(fleet, PLACES[place] % NOT_UTF_8[bytes_name])


def test_other_encodings_are_refused(fleet: RawFleet) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "latin-1"):
        refused(fleet, '{"model": "one", "user": "é"}'.encode(encoding))


def test_every_character_is_forwarded_as_it_came(fleet: RawFleet) -> None:
    text = "".join(map(chr, (0x7F, 0x80, 0x7FF, 0x800, 0x2028, 0xD7FF, 0xE000, 0xFFFF, 0x1F600, 0x10FFFF)))
    for ascii_only in (False, True):
        forwarded(fleet, json.dumps({"model": "one", "user": text, text: 1}, ensure_ascii=ascii_only).encode())


def nested(levels: int, opening: bytes, closing: bytes, inside: bytes = b"") -> bytes:
    """An object that nests that many levels, itself included."""
    return b'{"model": "one", "x": ' + opening * (levels - 1) + inside + closing * (levels - 1) + b"}"


@pytest.mark.parametrize("path", PATHS)
def test_64_levels_are_fine_and_65_are_not(fleet: RawFleet, path: str) -> None:
    for opening, closing, inside in ((b"[", b"]", b""), (b'{"a":', b"}", b"1"), (b'[{"a": ', b"}]", b"[]")):
        levels = 64 if opening != b'[{"a": ' else 32
        at_most = nested(levels, opening, closing, inside)
        forwarded(fleet, at_most, path)
        assert "64" in refused(fleet, nested(levels + 2, opening, closing, inside), path)
    assert "64" in refused(fleet, nested(65, b"[", b"]"), path)
    assert "64" in refused(fleet, nested(65, b'{"a":', b"}", b"1"), path)
    assert "64" in refused(fleet, b"{" + LARGE + nested(65, b"[", b"]")[1:], path)


def test_brackets_in_texts_and_beside_each_other_are_no_levels(fleet: RawFleet) -> None:
    forwarded(fleet, b'{"model": "one", "x": "' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"}')
    forwarded(fleet, b'{"model": "one", "x": [' + b"[[]]," * 1000 + b"{}]}")
    assert "64" in refused(fleet, b'{"model": "one", "x": "]]]]]", "y": ' + b"[" * 64 + b"]" * 64 + b"}")


@pytest.mark.parametrize("body", NO_OBJECTS)
def test_what_is_no_json_object_is_refused(fleet: RawFleet, body: bytes) -> None:
    for path in (CHAT, EMBEDDINGS):
        refused(fleet, body, path)
