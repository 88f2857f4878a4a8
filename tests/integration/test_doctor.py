"""`chatfleet doctor`: passes our own servers, notices every rule that is broken, and says so."""

import asyncio
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
import typer

from chatfleet.cli.doctor import doctor
from chatfleet.cli.local_fleet import LocalFleet, published, run_folder
from chatfleet.core.errors import ConfigurationError
from chatfleet.doctor.catalogue import all_checks, chosen
from chatfleet.doctor.client import Client
from chatfleet.doctor.context import MAX_REQUESTS
from chatfleet.doctor.runner import Result, examine
from support.altering import Alteration, AlteringServer, Exchange
from support.broken_servers import BROKEN, answered
from support.command import refused, run
from support.models import write_safetensors
from support.processes import Endpoint, FleetEndpoint
from support.wire import PATIENCE_S, Json

UNSEEN = {"chat.images", "completions.suffix", "reasoning.content", "reasoning.stream", "reasoning.usage"}
"""What no text model can show that does not reason and was not trained to fill in the middle."""

OPENVINO = {
    "sampling.logit_bias",
    "sampling.logit_bias_forbids",
    "sampling.top_logprobs",
    "completions.logit_bias",
    "completions.top_logprobs",
    "completions.echo_logprobs",
    "extensions.repetition_penalty",
    "extensions.prompt_logprobs",
}
"""What this engine refuses by name."""


def examined(url: str, *options: str, status: int = 0) -> Json:
    """The JSON of `chatfleet doctor`, which must end with the status."""
    finished = run("doctor", "--base-url", f"{url}/v1", "--json", "--timeout", str(PATIENCE_S), *options)
    assert finished.returncode == status, finished.stdout + finished.stderr
    report: Json = json.loads(finished.stdout)
    return report


def unsupported(report: Json) -> set[str]:
    """Without what the words that a model happens to say decide."""
    return names(report, "unsupported") - {"sampling.penalties"}


def names(report: Json, outcome: str) -> set[str]:
    return {result["name"] for result in report["results"] if result["outcome"] == outcome}


@pytest.fixture(scope="module")
def good() -> Iterator[Endpoint]:
    with FleetEndpoint("--engine", "simulated") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def altering(good: Endpoint) -> Iterator[AlteringServer]:
    with AlteringServer(good.url) as server:
        yield server


def one(url: str, name: str) -> Result:
    """The result of one check."""
    client = Client(f"{url}/v1", "simulated", timeout_s=PATIENCE_S)
    (result,) = asyncio.run(examine(client, chosen([name]), lambda _: None))
    return result


def test_nothing_fails_over_the_simulated_engine(good: Endpoint) -> None:
    report = examined(good.url)
    assert names(report, "fail") == set(), report
    assert unsupported(report) == UNSEEN
    assert report["passed"] + report["failed"] + report["unsupported"] == len(all_checks())
    assert all((result["request"] is None) == (result["outcome"] == "pass") for result in report["results"])
    assert max(result["requests"] for result in report["results"]) <= MAX_REQUESTS


@pytest.mark.long
def test_nothing_fails_over_the_bundled_model() -> None:
    """It is weak: what has to be so must not depend on it."""
    with FleetEndpoint() as endpoint:
        report = examined(endpoint.url)
    assert names(report, "fail") == set(), report
    assert unsupported(report) == UNSEEN | OPENVINO


@pytest.mark.long
def test_nothing_fails_over_transformers(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "model")
    with FleetEndpoint(str(model), "--engine", "transformers", "--dtype", "float32") as endpoint:
        report = examined(endpoint.url)
    assert names(report, "fail") == set(), report
    assert unsupported(report) == UNSEEN


@pytest.mark.parametrize(
    "name",
    [
        name if index % 4 == 0 else pytest.param(name, marks=pytest.mark.long)
        for index, name in enumerate(sorted({name for name, _, _ in BROKEN}))
    ],
)
def test_a_good_server_passes_what_a_broken_one_fails(altering: AlteringServer, name: str) -> None:
    """Every alteration of the table, one check at a time; without it the check is none that fails."""
    altering.alter = lambda _: None
    before = one(altering.url, name)
    assert before.outcome != "fail", before.reason
    for what, alteration in ((what, alteration) for check, what, alteration in BROKEN if check == name):
        altering.alter = on_checks(alteration)
        result = one(altering.url, name)
        assert result.outcome == "fail", f"{what}: {result.outcome} {result.reason}"
        assert result.reason and result.request is not None


def on_checks(alteration: Alteration) -> Alteration:
    """The alteration, except for what is asked before any check is: the models, and one chat."""
    calls = iter(range(10**9))
    return lambda exchange: alteration(exchange) if next(calls) > 1 else None


def test_every_group_of_checks_can_fail() -> None:
    groups = {check.group for check in all_checks()}
    assert {name.partition(".")[0] for name, _, _ in BROKEN} == groups
    assert {name for name, _, _ in BROKEN} <= {check.name for check in all_checks()}


def test_names_are_unique() -> None:
    found = [check.name for check in all_checks()]
    assert len(set(found)) == len(found)


def test_a_failure_is_shown_with_the_request_for_it(altering: AlteringServer) -> None:
    altering.alter = on_checks(answered(500, b'{"error": {"message": "the disk is full"}}'))
    finished = run("doctor", "--base-url", f"{altering.url}/v1", "--only", "chat.whole", "--api-key", "sk-hidden")
    assert finished.returncode == 1, finished
    assert "the disk is full" in finished.stdout and "1 failed" in finished.stdout
    assert f"curl -sS {altering.url}/v1/chat/completions" in finished.stdout
    assert "$OPENAI_API_KEY" in finished.stdout and "sk-hidden" not in finished.stdout + finished.stderr
    altering.alter = on_checks(answered(500))
    report = examined(altering.url, "--only", "chat.whole", status=1)
    (result,) = report["results"]
    assert result["outcome"] == "fail" and report["failed"] == 1
    repeated = subprocess.run(result["request"], shell=True, capture_output=True, text=True, timeout=PATIENCE_S)
    assert json.loads(repeated.stdout) == {"object": "strange"}, repeated


def test_what_a_server_refuses_by_name_is_unsupported(altering: AlteringServer) -> None:
    no = b'{"error": {"message": "logit_bias is not supported", "type": "x", "param": "logit_bias", "code": null}}'
    altering.alter = on_checks(answered(400, no))
    result = one(altering.url, "sampling.logit_bias")
    assert (result.outcome, result.reason) == ("unsupported", "logit_bias is not supported")
    altering.alter = on_checks(answered(400, b'{"error": {"message": "bad luck"}}'))
    assert one(altering.url, "sampling.logit_bias").outcome == "fail"


def test_checks_can_be_listed_and_chosen(good: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(show_list=True)
    listed = capsys.readouterr().out
    assert all(check.name in listed for check in all_checks())
    doctor(f"{good.url}/v1", only=["models", "chat.n"], timeout=PATIENCE_S, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert [result["name"] for result in report["results"]] == [
        "models.list",
        "models.retrieve",
        "models.unknown",
        "chat.n",
    ]


def test_a_screen_of_80_columns_shows_titles_reasons_and_requests(altering: AlteringServer) -> None:
    """The title stays in the table; below it are why and the request, on one line each."""
    altering.alter = on_checks(spoilt("/models", 500, b'{"error": {"message": "the disk\\n\\n  is full"}}'))
    arguments = ("--only", "models.list", "--only", "chat.images", "--only", "chat.max_completion_tokens")
    finished = run("doctor", "--base-url", f"{altering.url}/v1", *arguments, env={"COLUMNS": "80"})
    assert finished.returncode == 1, finished
    lines = finished.stdout.splitlines()
    assert "  list                   fail         The models are listed, the one asked about" in lines
    assert "  max_completion_tokens  pass         max_completion_tokens does the same" in map(str.rstrip, lines)
    for heading, reason, path in (
        ("chat.images (unsupported): Images are looked at", "text only", "/chat/completions"),
        ("models.list (fail): The models are listed, the one asked about among them", "the disk is full", "/models"),
    ):
        place = lines.index(heading)
        assert reason in lines[place + 1]
        assert lines[place + 2].startswith(f"curl -sS {altering.url}/v1{path}")


def test_the_list_can_be_had_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(show_list=True, as_json=True, only=["stream"])
    listed = json.loads(capsys.readouterr().out)
    assert {"name": "stream.form", "group": "stream"}.items() <= listed[0].items()
    assert [item["name"] for item in listed] == [check.name for check in chosen(["stream"])]


def test_the_page_names_every_group() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert {check.group for check in all_checks()} <= set(re.findall(r"`([a-z]+)`", page))


def test_wrong_arguments_are_said() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such.*--list"):
        doctor(only=["no.such"])
    with pytest.raises(ConfigurationError, match="http://"):
        doctor("localhost:8000")


def refusal(base_url: str, model: str = "", key: str | None = None) -> str:
    """Why a server cannot be examined. The command prints that and ends with status 2."""
    with pytest.raises(ConfigurationError) as raised:
        asyncio.run(examine(Client(base_url, model, key, timeout_s=PATIENCE_S), chosen(["models"]), lambda _: None))
    return str(raised.value)


def spoilt(path: str, status: int, body: bytes, **headers: str) -> Alteration:
    """Answers like these to requests whose path ends so."""

    def alter(exchange: Exchange) -> None:
        if exchange.path.endswith(path):
            exchange.status, exchange.body, exchange.content_type = status, body, "text/plain"
            exchange.headers |= headers

    return alter


def test_a_server_that_is_not_there_is_said_once(good: Endpoint, altering: AlteringServer, free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}/v1"
    said = refusal(url)
    assert said.count(url) == 1 and "does not answer" in said and "Connection refused" in said and "ssl" not in said
    finished = run("doctor", "--base-url", url)
    refused(finished, said)
    assert "plain http" in refusal(altering.url.replace("http", "https"))
    assert f"try --base-url {good.url}/v1" in refusal(good.url)
    for wrong in ("/v2", "/v1/chat/completions"):
        assert f"try --base-url {good.url}/v1\n" in refusal(good.url + wrong)
        assert f"try --base-url {good.url}/v1" in refusal(good.url + wrong, "simulated")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b'{"error": "boom"}', ["status 500", "boom"]),
        (200, b"<html>\n<h1>Hello</h1>", ["status 200", "<html> <h1>Hello</h1>"]),
        (302, b"", ["status 302", "https://example.com/login"]),
        (200, b'{"data": [', ["status 200", '{"data": [']),
        (200, b'{"data": []}', ["lists no model"]),
        (401, b"no", ["wants an API key", "status 401"]),
    ],
)
def test_without_models_it_says_what_was_answered(
    altering: AlteringServer, status: int, body: bytes, words: list[str]
) -> None:
    altering.alter = spoilt("/models", status, body, location="https://example.com/login")
    said = refusal(f"{altering.url}/v1")
    assert all(word in said for word in words), said
    assert one(altering.url, "chat.whole").outcome == "pass", "the model is known, and the list is not needed"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (502, b"<html>\n<h1>Bad\x1b[2J gateway</h1>", ["status 502", "<html> <h1>Bad?[2J gateway</h1>"]),
        (200, b"", ["status 200", "(empty)"]),
        (302, b"", ["status 302", "https://example.com/login"]),
        (401, b'{"error": "who are you"}', ["wants an API key", "status 401", "who are you"]),
        (403, b"no", ["wants an API key", "status 403"]),
        (404, b'{"error": "model \'simulated\' not found"}', ["status 404", "not found", "lists it"]),
        (400, b'{"error": {"message": "No.", "param": "model"}}', ["status 400", "No."]),
    ],
)
def test_a_server_that_does_not_chat_is_left(
    altering: AlteringServer, status: int, body: bytes, words: list[str]
) -> None:
    altering.alter = spoilt("/chat/completions", status, body, location="https://example.com/login")
    said = refusal(f"{altering.url}/v1")
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"error": {"message": "the disk is full"}}'),
        (400, b'{"error": {"message": "simulated does not take it", "param": "max_tokens"}}'),
        (400, b'{"error": {"message": "simulated does not support chat"}}'),
        (404, b'{"detail": "Not Found"}'),
    ],
)
def test_what_else_goes_wrong_is_for_the_checks(altering: AlteringServer, status: int, body: bytes) -> None:
    altering.alter = spoilt("/chat/completions", status, body)
    assert one(altering.url, "models.list").outcome == "pass"


def test_an_unknown_model_is_said(good: Endpoint) -> None:
    said = refusal(f"{good.url}/v1", "gpt-9")
    assert "gpt-9" in said and "It lists simulated" in said


class LockedServer:
    """Wants `a-key` and lists a model; its chats are none. `keys` are those that it was given."""

    def __init__(self) -> None:
        outer = self
        self.keys: set[str | None] = set()

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                key = self.headers.get("authorization")
                outer.keys.add(key)
                body = json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
                self.send_response(200 if key == "Bearer a-key" else 401)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _answer

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LockedServer]:
    """With no key in the environment, and no fleet that runs here."""
    for name in ("OPENAI_API_KEY", "CHATFLEET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with LockedServer() as server:
        yield server


def test_the_key_comes_from_the_environment(
    locked: LockedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{locked.url}/v1"
    with pytest.raises(ConfigurationError, match=r"wants an API key(?s:.*)Set OPENAI_API_KEY"):
        doctor(url)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(ConfigurationError, match="does not know this API key"):
        doctor(url)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    assert fails(url, capsys).count("$OPENAI_API_KEY") == 1


def fails(url: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    """What is shown of a check that fails."""
    with pytest.raises(typer.Exit) as ended:
        doctor(url, only=["chat.whole"])
    assert ended.value.exit_code == 1
    return capsys.readouterr().out


def test_the_key_of_our_fleets_goes_to_nobody_else(
    locked: LockedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only to a running fleet's URL, given or found; the request that is shown names the variable that was used."""
    url = f"{locked.url}/v1"
    monkeypatch.setenv("CHATFLEET_API_KEY", "a-key")
    with pytest.raises(ConfigurationError, match="wants an API key"):
        doctor(url)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(ConfigurationError, match="does not know this API key"):
        doctor(url)
    assert locked.keys == {None, "Bearer another"}
    with run_folder() as folder:
        assert folder is not None
        with published(folder, LocalFleet(locked.url, "http://127.0.0.1:9", "token", os.getpid(), time.time())):
            for place in (None, url):
                shown = fails(place, capsys)
                assert "$CHATFLEET_API_KEY" in shown and "OPENAI_API_KEY" not in shown
            with pytest.raises(ConfigurationError, match="does not know this API key"):
                doctor(url.replace("127.0.0.1", "localhost"))
            monkeypatch.delenv("CHATFLEET_API_KEY")
            monkeypatch.setenv("OPENAI_API_KEY", "a-key")
            assert "$OPENAI_API_KEY" in fails(None, capsys)


def test_a_server_that_answers_nothing_is_left_in_time(altering: AlteringServer) -> None:
    stuck = threading.Event()

    def wait(_: object) -> None:
        stuck.wait(PATIENCE_S)

    altering.alter = on_checks(wait)
    client = Client(f"{altering.url}/v1", "simulated", timeout_s=2.0)
    try:
        (result,) = asyncio.run(examine(client, chosen(["chat.whole"]), lambda _: None))
        assert (result.outcome, result.reason) == ("fail", "There is no whole answer after 2 s.")
    finally:
        stuck.set()
