"""The `chatfleet` command: what it prints, and one clear message for whatever keeps it from starting."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.command import refused, run
from support.processes import CommandProcess, Endpoint, WorkerProcess
from support.suites import quick
from support.wire import PATIENCE_S

SIMULATED = ("worker", "--engine", "simulated", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    quick(
        8,
        [
            (("worker", "/no/such/model.gguf"), ("/no/such/model.gguf", "GGUF")),
            (("worker", "./nowhere"), ("nowhere",)),
            (("worker", __file__), ("not a GGUF file",)),
            (("worker", str(Path(__file__).parent)), ("openvino_model.xml",)),
            ((*SIMULATED, "--chat-template", "/no/template"), ("--chat-template", "/no/template", "chatml")),
            ((*SIMULATED, "--chat-template", "/"), ("--chat-template",)),
            ((*SIMULATED, "--chat-template-kwargs", "{bad"), ("--chat-template-kwargs", "{bad")),
            ((*SIMULATED, "--chat-template-kwargs", "[1]"), ("--chat-template-kwargs", "[1]")),
            ((*SIMULATED, "--chat-template-kwargs", "[/b]"), ("[/b]",)),
            (("worker", "--engine", "steam"), ("--engine", "steam", "openvino", "simulated")),
            ((*SIMULATED, "--port", "70000"), ("--port",)),
            ((*SIMULATED, "--max-concurrency", "0"), ("--max-concurrency",)),
            ((*SIMULATED, "--context-length", "-5"), ("--context-length",)),
            ((*SIMULATED, "--sim-failure-rate", "2"), ("--sim-failure-rate",)),
            ((*SIMULATED, "--host", "no.such.host.invalid"), ("no.such.host.invalid", "--host")),
            ((*SIMULATED, "--no-such-option"), ("--no-such-option",)),
            (("no-such-command",), ("no-such-command",)),
            (("worker", "--model-name", "x" * 600, *SIMULATED[1:]), ("--model-name", "512")),
            (("worker", "--host", "0.0.0.0", *SIMULATED[1:]), ("0.0.0.0", "CHATFLEET_FLEET_TOKEN")),
            (("gateway", "--alias", "nothing"), ("--alias", "NAME=MODEL")),
            (("gateway", "--controller-url", "10.0.0.1"), ("--controller-url", "http://10.0.0.1:21001")),
            (("gateway", "--trusted-proxies", "10.0.0.0/33"), ("--trusted-proxies", "10.0.0.0/33")),
            (("gateway", "--allowed-origins", "example.com/"), ("--allowed-origins", "https://app.example.com")),
            (("gateway", "--allow-credentials"), ("--allow-credentials", "--allowed-origins")),
            (("gateway", "--api-key", "not one key"), ("API key",)),
            (("gateway", "--api-keys-file", "/no/such/file"), ("--api-keys-file", "/no/such/file")),
        ],
    ),
)
def test_what_keeps_it_from_starting_is_one_clear_message(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run(*arguments), *words)


def test_a_broken_template_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for message in messages %}\n{{ message.content }}\n{% endif %}")
    refused(run(*SIMULATED, "--chat-template", str(path)), "does not compile", "line 3")
    path.write_bytes(b"\xff\xfe")
    refused(run(*SIMULATED, "--chat-template", str(path)), "--chat-template")


@pytest.mark.long
def test_a_port_that_is_taken_is_named(simulated_endpoint: Endpoint) -> None:
    port = simulated_endpoint.url.rpartition(":")[2]
    refused(run("worker", "--engine", "simulated", "--port", port), port, "--port")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        taken = str(bound.getsockname()[1])
        refused(run("worker", "--engine", "simulated", "--port", taken), taken)


@pytest.mark.parametrize(
    ("name", "value"),
    [("CHATFLEET_PORT", "many"), ("CHATFLEET_MODEL_NAMES", "[no json"), ("CHATFLEET_CHAT_TEMPLATE_KWARGS", "{bad")],
)
def test_a_wrong_environment_variable_is_one_clear_message(name: str, value: str) -> None:
    refused(run("worker", "--engine", "simulated", env={name: value}), "CHATFLEET_")


def test_the_environment_sets_what_the_command_line_leaves_open() -> None:
    env = {"CHATFLEET_MODEL_NAMES": '["from-env"]', "CHATFLEET_CONTEXT_LENGTH": "99"}
    with WorkerProcess("--engine", "simulated", env=env) as worker, worker.http() as http:
        (card,) = http.get("/v1/models").json()["data"]
        assert (card["id"], card["max_model_len"]) == ("from-env", 99)
    with WorkerProcess("--engine", "simulated", "--context-length", "98", env=env) as worker, worker.http() as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 98


def test_serve_shows_how_to_call_it_and_what_it_shows_works() -> None:
    with CommandProcess("serve", "--engine", "simulated", "--port", "0") as server:
        deadline = time.monotonic() + PATIENCE_S
        while "chatfleet chat --base-url" not in server.output:
            assert time.monotonic() < deadline, server.output
        command = re.search(r"^  curl .*?'$(?=\n\n)", server.output, re.DOTALL | re.MULTILINE)
        assert command is not None, server.output
        answer = subprocess.run(command[0], shell=True, capture_output=True, text=True, timeout=PATIENCE_S)
        assert '"chat.completion"' in answer.stdout, (command[0], answer)


def test_help_and_version_need_no_model() -> None:
    assert run("--version").stdout.strip()
    for command in ("serve", "gateway", "controller", "worker", "chat"):
        finished = run(command, "--help")
        assert finished.returncode == 0 and "--" in finished.stdout


def test_it_starts_fast_enough_to_be_asked_for_help_without_loading_an_engine() -> None:
    """What only an engine needs is imported in the engine's process alone."""
    script = "import sys, chatfleet.cli; print(*[m for m in ('torch', 'transformers', 'openvino') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


def test_keys_that_were_asked_for_and_are_not_there_leave_nothing_open(tmp_path: Path) -> None:
    refused(run("gateway", env={"CHATFLEET_API_KEYS": ","}), "CHATFLEET_API_KEYS")
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n")
    refused(run("gateway", "--api-keys-file", str(empty)), "--api-keys-file")


def test_it_takes_as_many_descriptors_as_it_may() -> None:
    script = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); from chatfleet.cli.part import begin_part;"
        "begin_part(print); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    soft, hard = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert int(soft) == (65536 if hard == "-1" else min(int(hard), 65536))
