"""What the gateway reads and changes of a body."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.core.errors import InvalidRequest
from chatfleet.core.fleet import ModelInfo, WorkerInfo
from chatfleet.gateway.requests import build_parameters, read_routing

OURS = WorkerInfo(worker_id="w", url="http://w:1", models=(ModelInfo(id="m"),))
FOREIGN = OURS.model_copy(update={"kind": "openai"})


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b"{}", None, None),
        (b'{"model": "m", "stream": true}', "m", True),
        (b'{"model": null, "stream": null, "messages": [{"model": "x"}]}', None, None),
        (b'{"mod\\u0065l": "m"}', "m", None),
        (b'{"model": "m", "temperature": NaN}', "m", None),
    ],
)
def test_what_routing_needs_is_read(body: bytes, model: str | None, stream: bool | None) -> None:
    routing = read_routing(body)
    assert (routing.model, routing.stream) == (model, stream)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'"model"', None),
        (b'{"model": "m"', None),
        (b"\xff", None),
        (b'{"model": "\xff\xfem"}', None),
        (b'{"model": 5}', "model"),
        (b'{"model": ["m"]}', "model"),
        (b'{"model": "' + b"m" * 513 + b'"}', "model"),
        (b'{"stream": "yes"}', "stream"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", None),
    ],
)
def test_what_cannot_be_routed_is_refused_by_name(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_routing(body)
    assert refused.value.param == param


def test_a_body_that_needs_no_change_is_passed_on_as_it_is() -> None:
    body = b'{ "model" : "m",  "messages": [ ] }'
    assert build_parameters(body, OURS, "m", "m") == (body, [])
    assert build_parameters(body, FOREIGN, "m", "m") == (body, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(fields=st.dictionaries(st.text(), json_values, max_size=6), named=st.none() | st.text())
def test_another_model_changes_nothing_else(fields: dict[str, Any], named: str | None) -> None:
    fields = fields if named is None else {**fields, "model": named}
    if named is None:
        fields.pop("model", None)
    body, dropped = build_parameters(json.dumps(fields).encode(), OURS, named, "other")
    assert json.loads(body) == {**fields, "model": "other"} and dropped == []


def test_a_server_that_is_not_ours_gets_only_what_is_known_or_allowed() -> None:
    fields = {
        "model": "m",
        "messages": [],
        "top_k": 3,
        "structured_outputs": {},
        "chat_template": "{{ x }}",
        "kv_transfer_params": {},
        "priority": 1,
        "cache_salt": "x",
    }
    body, dropped = build_parameters(json.dumps(fields).encode(), FOREIGN, "m", "m")
    assert set(json.loads(body)) == {"model", "messages", "top_k", "structured_outputs"}
    assert sorted(dropped) == ["cache_salt", "chat_template", "kv_transfer_params", "priority"]
    allowing = FOREIGN.model_copy(update={"allowed_fields": ("priority",)})
    body, dropped = build_parameters(json.dumps(fields).encode(), allowing, "m", "m")
    assert json.loads(body)["priority"] == 1 and "priority" not in dropped
    ours, dropped = build_parameters(json.dumps(fields).encode(), OURS, "m", "m")
    assert json.loads(ours) == fields and not dropped


def test_what_is_no_json_to_change_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        build_parameters(b'{"a": NaN}', OURS, None, "m")
