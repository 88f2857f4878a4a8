"""`chatfleet controller`, `register`, `unregister` and `status` as a person types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.command import refused, run
from support.fake_openai import FakeOpenAI
from support.fleet import beat, until, worker_json, workers
from support.processes import ControllerProcess
from support.suites import quick
from support.terminal import Terminal

KEY = "sk-the-key-of-a-stranger"
TOKEN = "a-token-of-the-fleet-0123456789"


@pytest.fixture(scope="module")
def process() -> Iterator[ControllerProcess]:
    with ControllerProcess() as controller:
        yield controller


@pytest.fixture
def controller(process: ControllerProcess) -> Iterator[httpx.Client]:
    with process.http() as http:
        yield http
        for worker_id in workers(http):
            http.delete(f"/fleet/workers/{worker_id}", headers={"content-type": "application/json"})


@pytest.fixture(autouse=True)
def _no_fleet_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def test_a_server_is_registered_shown_and_unregistered(process: ControllerProcess, controller: httpx.Client) -> None:
    at = ("--controller-url", process.url)
    with FakeOpenAI("a", "b", "c", api_key=KEY) as stranger:
        options = (
            "--model-name",
            "a",
            "--model-name",
            "b",
            "--allowed-field",
            "top_a",
            "--api-key-env",
            "STRANGER_KEY",
        )
        finished = run("register", stranger.url + "/v1", *options, *at, env={"STRANGER_KEY": KEY})
        assert finished.returncode == 0, finished
        assert f"Registered {stranger.url} with {process.url}" in finished.stdout and "a, b" in finished.stdout
        (worker,) = workers(controller).values()
        assert (worker["api_key"], worker["allowed_fields"]) == (KEY, ["top_a"])
        shown = run("status", *at)
        for word in (worker["worker_id"], stranger.url, "openai", "a, b", "ready"):
            assert word in shown.stdout, shown
        assert KEY not in finished.stdout + finished.stderr + shown.stdout
        finished = run("unregister", stranger.url, *at)
        assert finished.returncode == 0 and "Unregistered" in finished.stdout
        assert workers(controller) == {}
        finished = run("unregister", stranger.url, *at)
        assert finished.returncode == 1 and "No server is registered" in finished.stderr
        assert run("register", stranger.url, "--api-key", KEY, *at).returncode == 0
        assert run("unregister", stranger.url, *at).returncode == 0


@pytest.mark.long
def test_every_controller_given_is_told_and_the_one_that_fails_is_named(
    process: ControllerProcess, controller: httpx.Client
) -> None:
    dead = "http://127.0.0.1:9"
    with FakeOpenAI("m") as stranger, ControllerProcess() as second, second.http() as other:
        urls = {"CHATFLEET_CONTROLLER_URLS": f"{process.url},{dead},{second.url}"}
        finished = run("register", stranger.url, env=urls)
        assert finished.returncode == 1
        assert finished.stdout.count("Registered") == 2
        assert "refused" in finished.stderr and dead in finished.stderr and "Traceback" not in finished.stderr
        assert list(workers(controller)) == list(workers(other)) != []
        shown = run("status", "--once", env=urls)
        assert shown.returncode == 1 and shown.stdout.count(stranger.url) == 2 and dead in shown.stderr
        for url in (process.url, second.url):
            assert run("unregister", stranger.url, "--controller-url", url).returncode == 0


def test_a_server_that_cannot_be_registered_is_one_clear_line(process: ControllerProcess) -> None:
    finished = run("register", "http://127.0.0.1:9", "--controller-url", process.url)
    assert finished.returncode == 1 and finished.stdout == ""
    assert "http://127.0.0.1:9 cannot be registered: it cannot be reached" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    quick(
        5,
        [
            (("register", "nonsense"), ("URL", "http://")),
            (("register", "http://h:1", "--api-key", "a b"), ("--api-key",)),
            (("register", "http://h:1", "--api-key", KEY, "--api-key-env", "HOME"), ("--api-key", "--api-key-env")),
            (("register", "http://h:1", "--api-key-env", "NO_SUCH_KEY"), ("NO_SUCH_KEY",)),
            (("register", "http://h:1", "--model-name", ""), ("--model-name",)),
            (("register", "http://h:1", "--controller-url", "nonsense"), ("controller",)),
            (("status", "--fleet-token-file", "/no/such/file"), ("/no/such/file",)),
            (("controller", "--port", "0", "--host", "0.0.0.0"), ("--host", "0.0.0.0", "CHATFLEET_FLEET_TOKEN")),
            (("controller", "--port", "0", "--expiry", "5", "--heartbeat-interval", "5"), ("--expiry", "longer")),
            (("controller", "--port", "0", "--expiry", "0"), ("--expiry",)),
            (("controller", "--port", "0", "--fleet-token-file", "/no/such/file"), ("/no/such/file",)),
        ],
    ),
)
def test_what_makes_no_sense_is_one_clear_message(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    finished = run(*arguments)
    refused(finished, *words)
    assert KEY not in finished.stdout + finished.stderr and "a b" not in finished.stderr


def test_a_weak_token_is_refused_and_not_shown() -> None:
    finished = run("controller", "--port", "0", env={"CHATFLEET_FLEET_TOKEN": "short-secret"})
    refused(finished, "CHATFLEET_FLEET_TOKEN", "16")
    assert "short-secret" not in finished.stdout + finished.stderr


def test_a_controller_that_is_not_there_is_named_with_what_to_do() -> None:
    for command in (("status",), ("register", "http://h:1"), ("unregister", "http://h:1")):
        finished = run(*command, "--controller-url", "http://127.0.0.1:9")
        assert finished.returncode == 1, finished
        assert "http://127.0.0.1:9" in finished.stderr and "chatfleet controller" in finished.stderr
        assert len(finished.stderr.strip().splitlines()) == 1


def test_a_token_is_asked_for_and_used() -> None:
    with ControllerProcess(env={"CHATFLEET_FLEET_TOKEN": TOKEN}) as process:
        finished = run("status", "--controller-url", process.url)
        assert finished.returncode == 1 and "CHATFLEET_FLEET_TOKEN" in finished.stderr
        env = {"CHATFLEET_FLEET_TOKEN": TOKEN, "CHATFLEET_CONTROLLER_URLS": process.url}
        assert run("status", env=env).returncode == 0


def test_a_controller_has_the_name_it_is_given() -> None:
    with ControllerProcess("--controller-id", "east") as process, process.http() as http:
        assert http.get("/fleet/snapshot").json()["controller_id"] == "east"


def test_an_empty_fleet_says_what_to_do_next(process: ControllerProcess, controller: httpx.Client) -> None:
    shown = run("status", "--controller-url", process.url, env={"COLUMNS": "80"})
    assert shown.returncode == 0
    assert f"chatfleet worker --controller-url {process.url}" in shown.stdout and "chatfleet register" in shown.stdout


def test_the_table_is_readable_at_80_columns(process: ControllerProcess, controller: httpx.Client) -> None:
    beat(
        controller,
        worker_json("worker-0123456789abcdef", "http://192.168.100.100:21002", "org/a-model-with-a-long-name"),
        running=12,
    )
    resting = worker_json("worker-fedcba9876543210", "http://192.168.100.101:21002", "chatfleet-tiny", ready=False)
    beat(controller, resting, waiting=3)
    shown = run("status", "--controller-url", process.url, env={"COLUMNS": "80"}).stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80, shown
    for whole in (
        "worker-0123456789abcdef",
        "http://192.168.100.100:21002",
        "chatfleet",
        "Run",
        "Wait",
        "Heard",
    ):
        assert whole in shown, shown
    (first,) = (line for line in lines if "worker-0123456789abcdef" in line)
    assert first.split()[-5:-2] == ["ready", "12", "0"], shown
    (second,) = (line for line in lines if "worker-fedcba9876543210" in line)
    assert "not ready" in second and second.split()[-4:-2] == ["0", "3"], shown


def test_a_name_cannot_command_the_terminal(process: ControllerProcess, controller: httpx.Client) -> None:
    beat(controller, worker_json("w", "http://10.0.0.1:1", "\x1b[2Jevil[bold]\u202e"))
    shown = run("status", "--controller-url", process.url).stdout
    assert "\x1b" not in shown and "\u202e" not in shown and "evil[bold]" in shown


@pytest.mark.long
def test_a_server_that_is_away_is_shown_with_the_reason() -> None:
    with ControllerProcess("--heartbeat-interval", "0.3", "--expiry", "1.5") as process, process.http() as controller:
        with FakeOpenAI("m") as stranger:
            assert run("register", stranger.url, "--controller-url", process.url).returncode == 0
        until(lambda: not workers(controller), "it expires")
        shown = run("status", "--controller-url", process.url).stdout
        assert "away" in shown and f"{stranger.url}: At the last probe, it cannot be reached" in shown, shown


def test_json_is_for_scripts(process: ControllerProcess, controller: httpx.Client) -> None:
    beat(controller, worker_json("w", "http://10.0.0.1:1", "m", api_key=KEY), running=1)
    finished = run("status", "--json", "--controller-url", process.url, "--controller-url", "http://127.0.0.1:9")
    assert finished.returncode == 1 and KEY not in finished.stdout
    here, away = json.loads(finished.stdout)["controllers"]
    assert here["url"] == process.url and here["error"] is None
    (worker,) = here["status"]["workers"]
    assert (worker["worker_id"], worker["model_names"], worker["load"]["running"]) == ("w", ["m"], 1)
    assert away["status"] is None and "127.0.0.1:9" in away["error"]


def test_at_a_terminal_it_stays_up_to_date_until_interrupted(
    process: ControllerProcess, controller: httpx.Client
) -> None:
    with Terminal("status", "--controller-url", process.url, env={"TERM": "xterm"}) as terminal:
        terminal.until("No worker yet")
        beat(controller, worker_json("worker-that-came-later", "http://10.0.0.1:1", "m"))
        terminal.until("worker-that-came-later")
        terminal.interrupt()
        assert terminal.end() == 0
        assert "Traceback" not in terminal.screen and "Aborted" not in terminal.screen
