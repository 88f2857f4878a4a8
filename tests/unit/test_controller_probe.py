"""What a server lists at /v1/models, well or badly."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.controller.probe import MAX_MODELS, ProbeFailed, listed_models
from chatfleet.controller.servers import plain_url, server_id
from chatfleet.core.fleet import ModelInfo


def body(*entries: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def test_what_servers_say_of_a_model_is_kept() -> None:
    entry = {"id": "m", "created": 17, "owned_by": "vllm", "max_model_len": 4096, "permission": [], "root": "/m"}
    assert listed_models(body(entry), ()) == (ModelInfo(id="m", created=17, owned_by="vllm", context_length=4096),)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"created": None, "owned_by": None, "max_model_len": None},
        {"created": "yesterday", "owned_by": 7, "max_model_len": "long"},
        {"created": -1, "owned_by": {}, "max_model_len": 0},
        {"created": 1e300, "max_model_len": -5},
    ],
)
def test_what_makes_no_sense_beside_the_id_is_left_out(fields: dict[str, Any]) -> None:
    assert listed_models(body({"id": "m", **fields}), ()) == (ModelInfo(id="m", owned_by=""),)


def test_a_time_with_a_fraction_is_a_whole_second() -> None:
    (model,) = listed_models(body({"id": "m", "created": 1700000000.5}), ())
    assert model.created == 1700000000


def test_only_the_wanted_models_are_taken_and_each_once() -> None:
    models = listed_models(body({"id": "a"}, {"id": "b"}, {"id": "a"}, {"id": "c"}), ("a", "c", "absent"))
    assert [model.id for model in models] == ["a", "c"]


def test_no_model_is_no_failure() -> None:
    assert listed_models(body(), ()) == ()


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"[]", b"null", b"{}", b'{"data": {}}', b'{"data": null}', b'{"data": ["m"]}', b"\xff\xfe"],
)
def test_what_is_no_list_of_models_is_refused(answer: bytes) -> None:
    with pytest.raises(ProbeFailed, match="not OpenAI-compatible"):
        listed_models(answer, ())


@pytest.mark.parametrize("model_id", [None, 7, "", "x" * 513, ["m"]])
def test_an_entry_without_a_usable_id_is_refused(model_id: object) -> None:
    with pytest.raises(ProbeFailed, match="'id'"):
        listed_models(body({"id": model_id}), ())


def test_too_many_models_are_refused_and_some_of_them_are_not() -> None:
    many = body(*({"id": str(number)} for number in range(MAX_MODELS + 1)))
    with pytest.raises(ProbeFailed, match="--model-name"):
        listed_models(many, ())
    assert [model.id for model in listed_models(many, ("7",))] == ["7"]


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProbeFailed):
        listed_models(b'{"data": ' + b"[" * 100_000, ())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "data", "created", "owned_by", "max_model_len"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps({"data": value}).encode()))
def test_whatever_comes_is_models_or_a_clear_failure(answer: bytes) -> None:
    try:
        models = listed_models(answer, ())
    except ProbeFailed as exc:
        assert str(exc)
    else:
        assert all(model.id for model in models)


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("https://h/api/v1", "https://h/api"),
        ("http://h/v11", "http://h/v11"),
        ("http://h//v1", "http://h"),
    ],
)
def test_a_url_is_the_same_with_and_without_v1(given_url: str, url: str) -> None:
    assert plain_url(given_url) == url


def test_the_id_of_a_server_is_that_of_its_url() -> None:
    assert server_id("http://a:1") == server_id("http://a:1") != server_id("http://a:2")
