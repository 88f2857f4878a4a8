"""`chatfleet serve`: a whole fleet in one command, that survives its parts and leaves nothing behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from openai import OpenAI

from support.fleet import until
from support.processes import GUARDED, CommandProcess
from support.serve import ServeProcess, ask, running, until_answered, until_gone
from support.suites import quick
from support.terminal import Terminal
from support.wire import PATIENCE_S, chat_texts, chunks, failed, user

SIMULATED = ("--engine", "simulated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module")
def two_models(folder: Path) -> Iterator[ServeProcess]:
    """Simulated models a and b with two workers each, behind two gateway processes that want a key."""
    env = {"CHATFLEET_API_KEYS": "test-key-of-a-client", "CHATFLEET_FLEET_TOKEN": "not-for-this-fleet"}
    options = ("--workers-per-model", "2", "--processes", "2", "--alias", "gpt-4o=a")
    with ServeProcess(*SIMULATED, *options, "a", "b", folder=folder, env=env) as serve:
        yield serve


@pytest.fixture
def keyed(two_models: ServeProcess) -> Iterator[httpx.Client]:
    with two_models.http() as http:
        http.headers["authorization"] = "Bearer test-key-of-a-client"
        yield http


def record_of(folder: Path) -> Path:
    (record,) = folder.glob("chatfleet/serve-*/record.json")
    return record


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GUARDED), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})},
    )


def test_the_bundled_model_answers_and_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    with ServeProcess(folder=tmp_path) as serve:
        with serve.http() as http:
            assert "Serving chatfleet-tiny on " in serve.output
            said = ask(http, "chatfleet-tiny").json()["choices"][0]["message"]["content"]
            assert said.strip()
        processes = serve.everything()
        assert len(processes) >= 5  # controller, worker, its engine, gateway
        assert serve.stop(signal.SIGINT) == 0
        until_gone(processes)
    assert "Traceback" not in serve.output
    assert list((tmp_path / "chatfleet").iterdir()) == []


@pytest.mark.long
def test_every_model_answers_under_its_name(two_models: ServeProcess, keyed: httpx.Client) -> None:
    assert "Serving a, b on " in two_models.output
    assert {card["id"] for card in keyed.get("/v1/models").json()["data"]} >= {"a", "b"}
    for name in ("a", "b", "gpt-4o"):
        assert ask(keyed, name).status_code == 200, name
    failed(ask(keyed, "c"), 404, code="model_not_found")


def test_keys_are_asked_for_and_the_snippets_show_where_they_go(two_models: ServeProcess) -> None:
    with two_models.http() as http:
        failed(ask(http, "a"), 401, code="invalid_api_key")
    assert '-H "Authorization: Bearer $CHATFLEET_API_KEY"' in two_models.output
    assert 'api_key=os.environ["CHATFLEET_API_KEY"]' in two_models.output


def test_each_model_has_as_many_workers_as_were_asked_for(two_models: ServeProcess) -> None:
    assert sorted(worker.cmdline()[5] for worker in two_models.parts("worker")) == ["a", "a", "b", "b"]


def test_no_secret_is_on_a_command_line_or_in_the_log(two_models: ServeProcess, folder: Path) -> None:
    token = json.loads(record_of(folder).read_bytes())["fleet_token"]
    assert len(token) == 64
    for secret in (token, "test-key-of-a-client", "not-for-this-fleet"):
        assert secret not in two_models.output
        for process in two_models.everything():
            assert secret not in " ".join(process.cmdline())
    for worker in (*two_models.parts("worker"), *two_models.parts("controller")):
        assert "CHATFLEET_API_KEYS" not in worker.environ()
        assert worker.environ()["CHATFLEET_FLEET_TOKEN"] == token


def test_workers_and_controller_refuse_who_has_no_token(two_models: ServeProcess, folder: Path) -> None:
    record = json.loads(record_of(folder).read_bytes())
    with httpx.Client(base_url=record["controller_url"]) as http:
        failed(http.get("/fleet/snapshot"), 401)
        fleet = http.get("/fleet/snapshot", headers={"authorization": f"Bearer {record['fleet_token']}"}).json()
    urls = {worker["url"] for worker in fleet["workers"]}
    assert len(urls) == 4
    for url in urls:
        failed(httpx.get(f"{url}/v1/models"), 401)


def test_only_its_user_may_read_the_record(two_models: ServeProcess, folder: Path) -> None:
    record = record_of(folder)
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(record.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(record.parent.parent.stat().st_mode) == 0o700
    assert json.loads(record.read_bytes())["pid"] == two_models.pid


def test_chat_finds_what_is_served_on_another_port(two_models: ServeProcess, folder: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(folder), "CHATFLEET_API_KEY": "test-key-of-a-client"}
    finished = subprocess.run(
        [sys.executable, str(GUARDED), "chat"],
        input="hello\n/exit\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **env},
    )
    assert finished.returncode == 0, finished
    assert f"at {two_models.url}/v1" in finished.stdout
    assert "Error" not in finished.stdout
    refused = run("chat", env={"XDG_RUNTIME_DIR": str(folder)})
    assert refused.returncode == 1 and "CHATFLEET_API_KEY" in refused.stdout


def test_status_finds_it_too(two_models: ServeProcess, folder: Path) -> None:
    finished = run("status", "--json", env={"XDG_RUNTIME_DIR": str(folder)})
    assert finished.returncode == 0, finished
    (report,) = json.loads(finished.stdout)["controllers"]
    assert len(report["status"]["workers"]) == 4


def test_ctrl_c_at_the_terminal_reaches_the_parent_only(two_models: ServeProcess) -> None:
    own, *others = two_models.everything()
    groups = {os.getpgid(process.pid) for process in others}
    assert os.getpgid(own.pid) not in groups
    assert os.getsid(own.pid) not in {os.getsid(process.pid) for process in others}


def test_each_gateway_process_answers(two_models: ServeProcess, keyed: httpx.Client) -> None:
    first, second = two_models.parts("gateway")
    for stopped in (first, second):
        stopped.suspend()
        try:
            with two_models.http() as http:  # a connection of its own, which only the other one can take
                http.headers["authorization"] = keyed.headers["authorization"]
                assert ask(http, "a").status_code == 200
        finally:
            stopped.resume()


def test_one_gateway_process_is_enough_while_another_restarts(two_models: ServeProcess, keyed: httpx.Client) -> None:
    before = two_models.parts("gateway")
    before[0].kill()
    until(lambda: not running(before[0]), "its end")
    with two_models.http() as http:
        http.headers["authorization"] = keyed.headers["authorization"]
        until_answered(http, "a")
    until(lambda: len(two_models.parts("gateway")) == 2, "a second gateway process")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[ServeProcess]:
    with ServeProcess(*SIMULATED, "m", folder=tmp_path) as serve:
        yield serve


@pytest.mark.parametrize("command", quick(1, ["controller", "worker", "gateway"]))
def test_a_part_that_is_killed_comes_back_and_requests_work(small: ServeProcess, command: str) -> None:
    with small.http() as http:
        assert ask(http, "m").status_code == 200
    (killed,) = small.parts(command)
    descendants = killed.children(recursive=True)
    killed.kill()
    until_gone([killed, *descendants])
    name = {"worker": "m"}.get(command, command)
    until(lambda: f"{name} was ended by SIGKILL" in small.output, "a line about it")
    assert "it starts again in 0.5 s." in small.output
    until(lambda: f"{name} is back." in small.output, "its return")
    with small.http() as http:
        until_answered(http, "m")
    (restarted,) = small.parts(command)
    assert restarted.pid != killed.pid


@pytest.mark.long
def test_a_gateway_that_restarts_keeps_its_address_and_connections_wait(small: ServeProcess) -> None:
    (killed,) = small.parts("gateway")
    killed.kill()
    with small.http() as http:  # never refused: the parent holds the socket
        until_answered(http, "m")


@pytest.mark.long
def test_a_new_controller_knows_the_worker_again_and_requests_never_stop(small: ServeProcess) -> None:
    (controller,) = small.parts("controller")
    controller.kill()
    with small.http() as http:
        assert ask(http, "m").status_code == 200
        until(lambda: "controller is back." in small.output, "the controller")
        assert ask(http, "m").status_code == 200
        status = run("status", "--json", env={"XDG_RUNTIME_DIR": str(small.folder)})
        (report,) = json.loads(status.stdout)["controllers"]
        assert report["error"] is None


def test_nothing_outlives_a_parent_that_was_killed(small: ServeProcess) -> None:
    processes = small.everything()
    assert len(processes) >= 5
    small.stop(signal.SIGKILL)
    until_gone(processes)


@pytest.mark.long
def test_what_a_killed_parent_left_is_removed_by_the_next(small: ServeProcess) -> None:
    record = record_of(small.folder)
    small.stop(signal.SIGKILL)
    assert record.exists()
    chat = run("chat", env={"XDG_RUNTIME_DIR": str(small.folder)})
    assert "http://127.0.0.1:8000/v1" in chat.stdout
    assert not record.parent.exists()


@pytest.mark.parametrize("number", quick(1, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
def test_a_signal_stops_the_gateway_then_workers_then_the_controller(
    small: ServeProcess, number: signal.Signals
) -> None:
    order = [*small.parts("gateway"), *small.parts("worker"), *small.parts("controller")]
    assert len(order) == 3
    processes = small.everything()
    stopping = threading.Thread(target=small.stop, args=(number,))
    stopping.start()
    while any(map(running, order)):
        # Looked at from the last to the first: one that has ended was preceded by those looked at after it.
        ended = [not running(process) for process in reversed(order)]
        assert ended == sorted(ended), "not in order"
    stopping.join()
    assert small.stop() == 0
    until_gone(processes)
    assert "Traceback" not in small.output, small.output
    assert list((small.folder / "chatfleet").iterdir()) == []


@pytest.mark.long
def test_what_is_being_answered_is_finished_first(tmp_path: Path) -> None:
    with ServeProcess(*SIMULATED, "--sim-itl-ms", "50", "m", folder=tmp_path) as serve, serve.http() as http:
        body = {"model": "m", "messages": user("hello"), "stream": True, "max_tokens": 30, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            stopping = threading.Thread(target=serve.stop, args=(signal.SIGINT,))
            stopping.start()
            response.read()
        stopping.join()
        assert chat_texts(chunks(response))[0]
        assert serve.stop() == 0


def _refuses(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_who_comes_while_it_stops_is_refused_and_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with ServeProcess(*SIMULATED, "--sim-itl-ms", "1000", "m", folder=tmp_path) as serve, serve.http() as http:
        processes = serve.everything()
        body = {"model": "m", "messages": user("hello"), "stream": True, "max_tokens": 1000}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_bytes())
            os.kill(serve.pid, signal.SIGINT)
            until(lambda: "another Ctrl-C kills everything at once" in serve.output, "the offer")
            until(lambda: _refuses(serve.url), "a refusal")
            assert serve.alive()
            time.sleep(0.5)  # a person's pace: what comes faster is taken for one
            os.kill(serve.pid, signal.SIGINT)
            until(lambda: not serve.alive(), "the end")
        assert serve.stop() == 130
        until_gone(processes)


def test_the_official_client_works_as_the_greeting_shows_it(small: ServeProcess) -> None:
    client = OpenAI(base_url=f"{small.url}/v1", api_key="none")
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content


@pytest.mark.long
def test_names_and_ports_are_its_own_whatever_the_environment_says(tmp_path: Path) -> None:
    """The parent's settings are applied once: a port in the environment is the gateway's only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        "XDG_RUNTIME_DIR": str(tmp_path),
        "CHATFLEET_PORT": str(port),
        "CHATFLEET_ENGINE": "simulated",
        "CHATFLEET_MODEL_NAMES": "one,two",
        "CHATFLEET_CHAT_TEMPLATE_KWARGS": '{"x": 1}',
        "CHATFLEET_STRICT": "true",
    }
    with CommandProcess("serve", env=env) as serve, serve.http() as http:
        assert serve.url == f"http://127.0.0.1:{port}"
        assert "Serving one, two on" in serve.output
        assert ask(http, "two").status_code == 200
        refused = http.post("/v1/chat/completions", json={"model": "one", "messages": user("hi"), "nonsense": 1})
        failed(refused, 400, param="nonsense")


@pytest.mark.long
def test_two_fleets_run_beside_each_other_and_chat_takes_the_newest(small: ServeProcess, tmp_path: Path) -> None:
    with ServeProcess(*SIMULATED, "other", folder=tmp_path) as newest:
        for serve, model in ((small, "m"), (newest, "other")):
            with serve.http() as http:
                assert [card["id"] for card in http.get("/v1/models").json()["data"]] == [model]
        assert f"at {newest.url}/v1" in run("chat", env={"XDG_RUNTIME_DIR": str(tmp_path)}).stdout
    assert f"at {small.url}/v1" in run("chat", env={"XDG_RUNTIME_DIR": str(tmp_path)}).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    quick(
        3,
        [
            (("/no/such/model.gguf",), ("/no/such/model.gguf", "GGUF", "model      |")),
            ((*SIMULATED, "a", "b", "--model-name", "x"), ("--model-name", "1 times for 2 models")),
            ((*SIMULATED, "a", "a"), ("'a'", "--model-name", "--workers-per-model")),
            ((*SIMULATED, "a", "b", "--model-name", "x", "--model-name", "x"), ("'x'",)),
            ((*SIMULATED, "--api-keys-file", "/no/such/keys"), ("--api-keys-file", "/no/such/keys")),
            ((*SIMULATED, "--alias", "nonsense"), ("NAME=MODEL",)),
            ((*SIMULATED, "--workers-per-model", "0"), ("--workers-per-model",)),
            ((*SIMULATED, "--chat-template", "/no/template"), ("--chat-template", "/no/template")),
            ((*SIMULATED, "--host", "no.such.host.invalid"), ("no.such.host.invalid", "--host")),
        ],
    ),
)
def test_what_keeps_it_from_starting_is_one_clear_message(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    finished = run("serve", "--port", "0", *arguments, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert finished.returncode == 2, finished.stdout
    assert "Error" in finished.stdout and "Traceback" not in finished.stdout, finished.stdout
    assert "Serving" not in finished.stdout
    for word in words:
        assert word in finished.stdout, finished.stdout
    assert not list(tmp_path.glob("chatfleet/*"))
    assert not [process for process in psutil.process_iter() if _has_folder(process, tmp_path)]


def _has_folder(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("XDG_RUNTIME_DIR") == str(folder)
    except psutil.Error:
        return False


@pytest.mark.long
def test_one_of_several_models_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nothing")
    arguments = ("--model-name", "good", "--model-name", "broken", "/no/such.gguf", str(bad))
    finished = run("serve", "--port", "0", *arguments, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert finished.returncode == 2, finished.stdout
    assert "cannot start: what it says above" in finished.stdout


@pytest.mark.long
def test_a_taken_port_is_named_before_anything_starts(small: ServeProcess) -> None:
    port = small.url.rpartition(":")[2]
    finished = run("serve", *SIMULATED, "--port", port)
    assert finished.returncode == 2
    assert port in finished.stdout and "--port" in finished.stdout
    assert len(finished.stdout.strip().splitlines()) <= 3


@pytest.mark.long
def test_listening_to_everybody_without_a_key_is_warned_of(tmp_path: Path) -> None:
    with ServeProcess(*SIMULATED, "--host", "0.0.0.0", folder=tmp_path) as serve:
        assert "Warning" in serve.output and "CHATFLEET_API_KEYS" in serve.output
        assert serve.url.startswith("http://127.0.0.1:")
    with ServeProcess(*SIMULATED, "--host", "0.0.0.0", "--api-key", "k", folder=tmp_path) as serve:
        assert "Warning" not in serve.output


@pytest.mark.long
def test_it_serves_where_no_record_can_be_written(tmp_path: Path) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    with ServeProcess(*SIMULATED, "m", folder=not_a_folder) as serve, serve.http() as http:
        assert ask(http, "m").status_code == 200
        assert "This run cannot be recorded" in serve.output


@pytest.mark.long
def test_a_gateway_of_several_processes_is_supervised_too(small: ServeProcess) -> None:
    record = json.loads(record_of(small.folder).read_bytes())
    env = {"CHATFLEET_CONTROLLER_URLS": record["controller_url"], "CHATFLEET_FLEET_TOKEN": record["fleet_token"]}
    with CommandProcess("gateway", "--port", "0", "--processes", "2", env=env) as gateway, gateway.http() as http:
        until(lambda: "Serving m on" in gateway.output, "both processes know the model")
        children = psutil.Process(gateway.pid).children()
        assert len(children) == 2
        children[0].kill()
        until_answered(http, "m")
        assert record["fleet_token"] not in gateway.output
        assert gateway.stop(signal.SIGINT) == 0
        until_gone(children)


@pytest.mark.long
def test_at_a_terminal_it_greets_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Terminal("serve", "--port", "0", *SIMULATED) as terminal:
        terminal.until("Serving simulated on")
        terminal.until("chatfleet chat --base-url")
        terminal._process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.screen
