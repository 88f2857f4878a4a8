"""How an operator says which policy to use."""

import os
import socket

import pytest

from chatfleet.cli.parts import gateway_parts
from chatfleet.cli.serve import ServeSettings
from chatfleet.core.errors import ConfigurationError
from chatfleet.dispatch.policies import POLICY_NAMES
from chatfleet.gateway.settings import GatewaySettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CHATFLEET_")]:
        monkeypatch.delenv(name)


def test_power_of_two_is_the_default() -> None:
    settings = GatewaySettings.load()
    assert (settings.default_policy(), settings.policy_map()) == ("power_of_two", {})
    assert settings.session_header == "x-session-id"


def test_a_bare_name_is_for_all_models_and_others_are_for_one_by_its_name_or_alias() -> None:
    settings = GatewaySettings.load(
        policies=["session", "org/chat=prefix_aware", "a=b=lottery", "gpt-4o = random"],
        aliases=["gpt-4o=big"],
        session_header="X-Conversation",
    )
    assert settings.default_policy() == "session"
    assert settings.policy_map() == {"org/chat": "prefix_aware", "a=b": "lottery", "big": "random"}
    assert settings.session_header == "x-conversation"


@pytest.mark.parametrize("policies", [["nonsense"], ["m=nonsense"], ["=random"], ["m="], [""]])
def test_an_unknown_policy_is_refused_with_the_names_of_all(policies: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GatewaySettings.load(policies=policies)
    assert "--policy" in str(caught.value)
    assert all(name in str(caught.value) for name in POLICY_NAMES)


def test_two_policies_for_all_models_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one policy for all models"):
        GatewaySettings.load(policies=["random", "lottery"])


@pytest.mark.parametrize("header", ["", "two words", "x:y", "é"])
def test_a_session_header_must_be_the_name_of_a_header(header: str) -> None:
    with pytest.raises(ConfigurationError, match="--session-header"):
        GatewaySettings.load(session_header=header)


def test_the_environment_and_serve_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ServeSettings.load(policies=["session", "a=prefix_aware"], session_header="x-chat")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (part,) = gateway_parts(given, listener, {}, None)
    for name, value in part.environment.items():
        monkeypatch.setenv(name, value)
    settings = GatewaySettings.load()
    assert settings.default_policy() == "session" and settings.policy_map() == {"a": "prefix_aware"}
    assert settings.session_header == "x-chat"
    monkeypatch.setenv("CHATFLEET_POLICIES", "random, a=lottery")
    settings = GatewaySettings.load()
    assert settings.default_policy() == "random" and settings.policy_map() == {"a": "lottery"}
