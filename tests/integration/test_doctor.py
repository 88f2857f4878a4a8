"""`chatfleet doctor`: passes our own servers, notices every rule that is broken, and says so."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatfleet.doctor.catalogue import all_checks, chosen
from chatfleet.doctor.client import Client
from chatfleet.doctor.context import MAX_REQUESTS
from chatfleet.doctor.runner import Result, examine
from support.altering import Alteration, AlteringServer
from support.broken_servers import BROKEN, answered
from support.command import refused, run
from support.models import write_safetensors
from support.processes import ControllerProcess, Endpoint, FleetEndpoint, GatewayProcess, WorkerProcess
from support.wire import PATIENCE_S, Json

UNSEEN = {"chat.images", "completions.suffix", "reasoning.content", "reasoning.stream", "reasoning.usage"}
"""What no text model can show that does not reason and was not trained to fill in the middle."""

OPENVINO = {
    "sampling.logit_bias",
    "sampling.logit_bias_forbids",
    "sampling.top_logprobs",
    "stream.logprobs",
    "completions.logit_bias",
    "completions.logprobs",
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


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BROKEN}))
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
    """The alteration, except for what is asked before any check is."""
    calls = iter(range(10**9))
    return lambda exchange: alteration(exchange) if next(calls) > 0 else None


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


def test_checks_can_be_listed_and_chosen(good: Endpoint) -> None:
    listed = run("doctor", "--list")
    assert listed.returncode == 0
    assert all(check.name in listed.stdout for check in all_checks())
    report = examined(good.url, "--only", "models", "--only", "chat.n")
    assert [result["name"] for result in report["results"]] == [
        "models.list",
        "models.retrieve",
        "models.unknown",
        "chat.n",
    ]


def test_what_cannot_be_examined_is_said(good: Endpoint, free_port: int) -> None:
    refused(run("doctor", "--only", "no.such"), "no.such", "--list")
    refused(run("doctor", "--base-url", "localhost:8000"), "http://")
    refused(run("doctor", "--base-url", f"http://127.0.0.1:{free_port}/v1"), "does not answer", "running")
    refused(run("doctor", "--base-url", good.url), f"{good.url}/v1")
    refused(run("doctor", "--base-url", f"{good.url}/v1", "--model", "gpt-9"), "gpt-9", "simulated")


def test_the_key_comes_from_the_environment() -> None:
    with (
        ControllerProcess() as controller,
        WorkerProcess("--engine", "simulated", "--controller-url", controller.url),
        GatewayProcess(
            "--api-key", "a-key", controllers=[controller], models=["simulated"], api_key="a-key"
        ) as gateway,
    ):
        arguments = ("doctor", "--base-url", f"{gateway.url}/v1", "--only", "chat.whole")
        refused(run(*arguments), "wants an API key")
        refused(run(*arguments, env={"OPENAI_API_KEY": "another"}), "does not know this API key")
        assert run(*arguments, env={"OPENAI_API_KEY": "a-key"}).returncode == 0
        assert run(*arguments, env={"CHATFLEET_API_KEY": "a-key", "OPENAI_API_KEY": "another"}).returncode == 0


def test_a_server_that_answers_nothing_is_left_in_time(good: Endpoint, altering: AlteringServer) -> None:
    stuck = threading.Event()

    def wait(_: object) -> None:
        stuck.wait(PATIENCE_S)

    altering.alter = on_checks(wait)
    try:
        report = examined_quickly(altering.url)
        assert names(report, "fail") == {"chat.whole"}
        assert "after 0.5 s" in report["results"][0]["reason"]
    finally:
        stuck.set()


def examined_quickly(url: str) -> Json:
    finished = run("doctor", "--base-url", f"{url}/v1", "--json", "--only", "chat.whole", "--timeout", "0.5")
    assert finished.returncode == 1, finished
    report: Json = json.loads(finished.stdout)
    return report
