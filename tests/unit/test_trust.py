"""Who may call."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from chatfleet.core.access import FleetAccess, is_loopback
from chatfleet.core.errors import ConfigurationError, InvalidApiKey, ServingError
from chatfleet.http.trust import JsonMutations, KeyGuard, Keys, KnownHost, SingleHost, host_name

KEY = "k" * 16


async def passes(guard: Any, method: str, path: str, *headers: tuple[str, str], version: str = "1.1") -> int:
    """200 when the guard lets a request pass, else the status of its error."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope: Scope = {"type": "http", "method": method, "path": path, "headers": raw, "http_version": version}

    async def nothing(*_: Any) -> Any:
        raise AssertionError("neither body nor response is a guard's business")

    try:
        await guard(scope, nothing, nothing)
    except ServingError as exc:
        return exc.status
    return 200


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    pass


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"Bearer  {KEY} ", 200),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer k\xe9y", 401),
        ("", 401),
    ],
)
async def test_a_key_is_needed_and_must_be_right(authorization: str, status: int) -> None:
    guard = KeyGuard(app, Keys({"other": 0, KEY: 3}))
    assert await passes(guard, "GET", "/v1/models", ("authorization", authorization)) == status


async def test_without_a_key_only_the_open_paths_answer() -> None:
    guard = KeyGuard(app, Keys({KEY: 0}))
    for path, status in {"/health": 200, "/ready": 200, "/docs": 401, "/": 401, "/health/": 401, "/x": 401}.items():
        assert await passes(guard, "GET", path) == status
    two = ("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")
    assert await passes(guard, "GET", "/v1/models", *two) == 401


def test_keys_are_not_kept_and_not_shown() -> None:
    keys = Keys({KEY: 0})
    assert KEY not in repr(vars(keys))
    with pytest.raises(InvalidApiKey) as refused:
        keys.check("Bearer wrong-secret")
    assert "wrong-secret" not in refused.value.message


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST:1", 200),
        ("box.lan:21002", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
async def test_only_names_of_this_machine_are_known(host: str, status: int) -> None:
    guard = KnownHost(app, "box.lan")
    for method in ("GET", "POST"):
        assert await passes(guard, method, "/v1/models", ("host", host)) == status
    assert await passes(guard, "GET", "/v1/models", ("host", host), ("host", host)) == 421
    assert await passes(guard, "GET", "/v1/models") == 421


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
async def test_what_a_web_page_can_send_unasked_changes_nothing(content_type: str | None) -> None:
    guard = JsonMutations(app)
    headers = [("content-type", content_type)] if content_type else []
    for method in ("POST", "PUT", "DELETE"):
        assert await passes(guard, method, "/fleet/servers", *headers) == 415
        assert await passes(guard, method, "/fleet/servers", ("content-type", "Application/JSON; charset=utf-8")) == 200
    assert await passes(guard, "GET", "/fleet/status", *headers) == 200


async def test_exactly_one_host_is_needed() -> None:
    guard = SingleHost(app)
    assert await passes(guard, "GET", "/health", ("host", "a")) == 200
    assert await passes(guard, "GET", "/health") == 400
    assert await passes(guard, "GET", "/health", version="1.0") == 200
    assert await passes(guard, "GET", "/health", ("host", "a"), ("host", "a"), version="1.0") == 400


def test_the_name_of_a_host() -> None:
    assert [host_name([value]) for value in ("A:1", "[::1]:2", "[::1]", "b")] == ["a", "::1", "::1", "b"]
    assert host_name([]) == host_name(["a", "a"]) == ""
    assert is_loopback("[::1]") and is_loopback("LocalHost") and not is_loopback("127.0.0.1.example")


def test_a_component_without_a_token_listens_on_loopback_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("CHATFLEET_FLEET_TOKEN", raising=False)
    assert FleetAccess.load().listening_token("127.0.0.1") is None
    with pytest.raises(ConfigurationError, match="CHATFLEET_FLEET_TOKEN"):
        FleetAccess.load().listening_token("0.0.0.0")
    path = tmp_path / "token"
    path.write_text(f"{KEY}\n")
    assert FleetAccess.load(fleet_token_file=path).listening_token("0.0.0.0") == KEY
    monkeypatch.setenv("CHATFLEET_FLEET_TOKEN", "short-secret")
    with pytest.raises(ConfigurationError) as refused:
        FleetAccess.load().token()
    assert "short-secret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="fleet-token-file"):
        monkeypatch.delenv("CHATFLEET_FLEET_TOKEN")
        FleetAccess.load(fleet_token_file=tmp_path / "absent").token()
