"""How `chatfleet serve` makes settings of its parts out of its own."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from chatfleet.cli.parts import as_environment, distinct, gateway_parts, given_values, worker_parts
from chatfleet.cli.serve import ServeSettings
from chatfleet.core.errors import ConfigurationError
from chatfleet.gateway.settings import GatewaySettings
from chatfleet.observability.sharing import FILE_VARIABLE
from chatfleet.worker.settings import WorkerSettings


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CHATFLEET_")]:
        monkeypatch.delenv(name)


def settings(**given: object) -> ServeSettings:
    return ServeSettings.load(**given)


def load(kind: type[GatewaySettings] | type[WorkerSettings], environment: dict[str, str]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return kind.load()


def test_a_gateway_is_told_what_was_said_of_the_endpoint(listener: socket.socket) -> None:
    given = settings(
        aliases=["x=a, b", "y=c"],
        api_keys=["key-one", 'key"two,'],
        api_keys_file=Path("keys file"),
        allowed_origins=["https://a.example"],
        allow_credentials=True,
        keep_alive_interval=2.5,
        processes=3,
        host="0.0.0.0",
        engine="simulated",
        models=["a"],
    )
    parts = gateway_parts(given, listener, {"CHATFLEET_FLEET_TOKEN": "t" * 16}, None)
    assert [part.name for part in parts] == ["gateway", "gateway#2", "gateway#3"]
    loaded = load(GatewaySettings, dict(parts[0].environment))
    assert isinstance(loaded, GatewaySettings)
    assert loaded.aliases == given.aliases
    assert [key.get_secret_value() for key in loaded.api_keys] == ["key-one", 'key"two,']
    assert loaded.api_keys_file == Path("keys file")
    assert loaded.allowed_origins == ["https://a.example"] and loaded.allow_credentials
    assert (loaded.keep_alive_interval, loaded.host, loaded.processes) == (2.5, "0.0.0.0", 1)
    assert (loaded.fd, loaded.port) == (listener.fileno(), listener.getsockname()[1])
    assert loaded.token() == "t" * 16


def test_several_gateway_processes_have_a_file_each_for_their_metrics(listener: socket.socket, tmp_path: Path) -> None:
    def files(folder: Path | None, processes: int) -> list[str | None]:
        parts = gateway_parts(settings(processes=processes), listener, {}, folder)
        return [part.environment.get(FILE_VARIABLE) for part in parts]

    several = files(tmp_path, 3)
    assert len(set(several)) == 3
    assert all(file is not None and Path(file).parent == tmp_path for file in several)
    assert files(None, 2) == [None, None]
    assert files(tmp_path, 1) == [None]


def test_a_worker_is_told_what_was_said_of_its_engine_and_no_key() -> None:
    given = settings(
        api_keys=["secret"],
        port=1234,
        engine="simulated",
        chat_template_kwargs={"a": [1, "x"]},
        deterministic=True,
        sim_itl_ms=1.5,
        models=["a", "org/b"],
        model_names=["one", "two,three"],
    )
    parts = worker_parts(given, given.named_models(), {}, workers_per_model=2)
    assert [part.name for part in parts] == ["one", "one#2", "two,three", "two,three#2"]
    assert parts[3].command[-3:] == ("chatfleet", "worker", "org/b")
    assert "secret" not in str(parts[3].environment)
    loaded = load(WorkerSettings, dict(parts[3].environment))
    assert isinstance(loaded, WorkerSettings)
    assert (loaded.port, loaded.host, loaded.engine) == (0, "127.0.0.1", "simulated")
    assert loaded.model_names == ["two,three"]
    assert loaded.chat_template_kwargs == {"a": [1, "x"]}
    assert loaded.deterministic and loaded.sim_itl_ms == 1.5


def test_a_worker_is_told_how_to_run_its_model(tmp_path: Path) -> None:
    given = {
        "engine": "openvino",
        "device": "GPU.0",
        "dtype": "bfloat16",
        "max_gpu_memory_gb": 7.5,
        "trust_remote_code": True,
        "weight_format": "int4",
        "draft_model": "org/small",
        "num_assistant_tokens": 3,
        "lora": "adapter folder",
        "cache": tmp_path,
        "conversion_torch": "torch==2.14.1",
    }
    serve = settings(**given, models=["a"])
    (part,) = worker_parts(serve, serve.named_models(), {}, workers_per_model=1)
    loaded = load(WorkerSettings, dict(part.environment))
    assert {name: getattr(loaded, name) for name in given} == given


def test_the_engine_is_told_what_was_said_of_it(tmp_path: Path) -> None:
    given = {
        "device": "cuda:1",
        "dtype": "float16",
        "max_gpu_memory_gb": 8.0,
        "trust_remote_code": True,
        "prompt_lookup": True,
        "num_assistant_tokens": 2,
    }
    config = WorkerSettings.load(**given, lora="adapter").engine_config("transformers", tmp_path, tmp_path / "draft")
    assert {name: getattr(config, name) for name in given} == given
    assert (config.engine, config.model_path, config.lora_path) == ("transformers", str(tmp_path), "adapter")
    assert config.draft_model_path == str(tmp_path / "draft")


def test_what_was_not_given_is_left_to_the_part() -> None:
    assert given_values(settings(), ServeSettings.model_fields) == {}
    assert as_environment({"state_file": None, "strict": False, "fleet_token": SecretStr("s")}) == {
        "CHATFLEET_STRICT": "false",
        "CHATFLEET_FLEET_TOKEN": "s",
    }


def test_every_part_gets_the_same_time_to_finish_in_and_some_more_until_it_is_killed(listener: socket.socket) -> None:
    kinds = (ServeSettings, GatewaySettings, WorkerSettings)
    assert len({kind.model_fields["drain_timeout"].default for kind in kinds}) == 1
    for given in (settings(engine="simulated"), settings(engine="simulated", drain_timeout=90.5)):
        (gateway,) = gateway_parts(given, listener, {}, None)
        (worker,) = worker_parts(given, given.named_models(), {}, workers_per_model=1)
        for part, kind in ((gateway, GatewaySettings), (worker, WorkerSettings)):
            loaded = load(kind, dict(part.environment))
            assert isinstance(loaded, (GatewaySettings, WorkerSettings))
            assert loaded.drain_timeout == given.drain_timeout < part.grace_s - 3


def test_names_of_parts_are_never_the_same() -> None:
    assert distinct(["a", "a", "a#2", "b", "a"]) == ["a", "a#2", "a#2#2", "b", "a#3"]
    given = settings(engine="simulated", models=["gateway", "controller", "org/gateway", "/"])
    names = [part.name for part in worker_parts(given, given.named_models(), {}, workers_per_model=1)]
    assert names == ["gateway#2", "controller#2", "gateway#3", "worker"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, [(None, ("chatfleet-tiny",))]),
        ({"engine": "simulated"}, [(None, ("simulated",))]),
        ({"engine": "transformers"}, [(None, ("chatfleet-tiny",))]),
        ({"models": ["dir/a.gguf", "org/b"]}, [("dir/a.gguf", ("a",)), ("org/b", ("org/b",))]),
        ({"models": ["a"], "model_names": ["x", "y", "x"]}, [("a", ("x", "y"))]),
        ({"models": ["a", "a"], "model_names": ["x", "y"]}, [("a", ("x",)), ("a", ("y",))]),
    ],
)
def test_each_model_has_its_names(given: dict[str, object], named: object) -> None:
    assert settings(**given).named_models() == named


@pytest.mark.parametrize(
    "given",
    [
        {"models": ["a", "b"], "model_names": ["x"]},
        {"models": ["a", "b"], "model_names": ["x", "y", "z"]},
        {"models": ["a", "b"], "model_names": ["x", "x"]},
        {"models": ["one/a.gguf", "two/a.gguf"]},
    ],
)
def test_names_that_are_not_clear_are_refused_saying_how_to_give_them(given: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="--model-name"):
        settings(**given).named_models()


def test_workers_that_start_together_divide_the_free_memory() -> None:
    models = [("a.gguf", ("a",)), ("b.gguf", ("b",))]
    parts = worker_parts(ServeSettings.load(), models, {}, workers_per_model=2)
    assert [float(part.environment["CHATFLEET_MEMORY_SHARE"]) for part in parts] == [0.25] * 4
