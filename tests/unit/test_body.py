"""Request bodies and what is said of them when they are wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.errors import InvalidRequest
from chatfleet.http.body import MAX_DEPTH, is_too_deep, validate_body
from chatfleet.protocol.chat import ChatCompletionRequest
from chatfleet.protocol.completions import CompletionRequest

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(value=json_values, levels=st.integers(0, MAX_DEPTH + 5))
def test_nesting_is_counted_exactly(value: Any, levels: int) -> None:
    for level in range(levels):
        value = [value] if level % 2 else {'a"[{\\': value}
    assert is_too_deep(json.dumps(value).encode()) == (depth(value) > MAX_DEPTH)


def test_brackets_in_texts_are_no_nesting() -> None:
    assert not is_too_deep(json.dumps({"a": "[" * 1000 + '\\"{' * 1000}).encode())


def test_many_values_side_by_side_are_no_nesting() -> None:
    assert not is_too_deep(json.dumps([[] for _ in range(1000)]).encode())


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({}, "messages", "required"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "needs content"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "'developer', 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]", "'text'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid string"),
        ({"messages": [{"role": "user", "content": ""}], "temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"messages": [{"role": "user", "content": ""}], "temperature": "hot"}, "temperature", "valid number"),
        ({"messages": [{"role": "user", "content": ""}], "stop": ["a"] * 5}, "stop", "at most 4"),
        ({"messages": [{"role": "user", "content": ""}], "stop": ["a", ""]}, "stop[1]", "at least 1 character"),
        ({"messages": [{"role": "user", "content": ""}], "logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    ],
)
def test_a_complaint_names_the_field(body: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        validate_body(ChatCompletionRequest, json.dumps(body).encode())
    assert caught.value.param == param


def test_the_complaint_about_a_union_is_about_the_branch_that_was_meant() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate_body(CompletionRequest, b'{"prompt": [[1, 2], [3, -4]]}')
    assert caught.value.param == "prompt[1][1]"


@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b"\xff\xfe", b'{"prompt": NaN}', b"\x00", b'"text"', b"null"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        validate_body(CompletionRequest, body)


def test_fields_that_nobody_knows_are_found_at_every_level() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "a": 1}], "b": 1}], "c": 1}
    request = validate_body(ChatCompletionRequest, json.dumps(body).encode())
    assert set(request.unknown_fields()) == {"messages[0].content[0].a", "messages[0].b", "c"}
