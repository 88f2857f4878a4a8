"""`chatfleet models`: what a fleet serves, and what each engine can do, as a person and a script see it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chatfleet.engines.registry import BACKENDS
from support.command import run
from support.fleet import beat, worker_json
from support.processes import ControllerProcess
from support.serve import ServeProcess
from support.wire import PATIENCE_S


@pytest.fixture(scope="module")
def process() -> Iterator[ControllerProcess]:
    with ControllerProcess() as controller:
        yield controller


@pytest.fixture(autouse=True)
def _no_fleet_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def join(process: ControllerProcess, worker_id: str, *models: str, context_length: int, ready: bool = True) -> None:
    worker = worker_json(worker_id, f"http://127.0.0.1:9/{worker_id}", *models, ready=ready)
    for model in worker["models"]:
        model["context_length"] = context_length
    with process.http() as http:
        beat(http, worker)


def test_every_model_is_listed_once_with_its_workers(process: ControllerProcess) -> None:
    at = ("--controller-url", process.url)
    empty = run("models", *at)
    assert empty.returncode == 0 and "No model yet" in empty.stdout
    join(process, "one", "org/a", "b", context_length=4096)
    join(process, "two", "org/a", context_length=1024)
    join(process, "three", "c", context_length=2048, ready=False)
    listed = json.loads(run("models", "--json", *at).stdout)["models"]
    assert listed == [
        {"id": "b", "workers": 1, "ready": 1, "context_length": 4096},
        {"id": "c", "workers": 1, "ready": 0, "context_length": 2048},
        {"id": "org/a", "workers": 2, "ready": 2, "context_length": 1024},
    ]
    shown = run("models", *at)
    assert [line.split() for line in shown.stdout.splitlines()[2:]] == [
        ["b", "1", "1", "4096"],
        ["c", "1", "0", "2048"],
        ["org/a", "2", "2", "1024"],
    ], shown.stdout


@pytest.mark.long
def test_several_controllers_of_one_fleet_count_a_worker_once(process: ControllerProcess) -> None:
    with ControllerProcess() as other:
        for controller in (process, other):
            join(controller, "one", "org/a", context_length=4096)
        urls = [option for controller in (process, other) for option in ("--controller-url", controller.url)]
        listed = {row["id"]: row["workers"] for row in json.loads(run("models", "--json", *urls).stdout)["models"]}
        assert listed["org/a"] <= 2, "the fixture's other worker, and this one"
    gone = run("models", *urls)
    assert gone.returncode == 0 and "org/a" in gone.stdout
    assert "Warning" in gone.stderr and other.url in gone.stderr


def test_without_a_fleet_it_says_what_to_start(free_port: int) -> None:
    finished = run("models", "--controller-url", f"http://127.0.0.1:{free_port}")
    assert finished.returncode == 1 and "chatfleet serve" in finished.stderr


@pytest.mark.long
def test_it_finds_what_serve_runs_here(tmp_path: Path) -> None:
    with ServeProcess("--engine", "simulated", "--model-name", "mine", folder=tmp_path) as server:
        listed = json.loads(run("models", "--json", env={"XDG_RUNTIME_DIR": str(server.folder)}).stdout)["models"]
        with httpx.Client(base_url=server.url) as http:
            (card,) = http.get("/v1/models").json()["data"]
    assert listed == [{"id": "mine", "workers": 1, "ready": 1, "context_length": card["max_model_len"]}]


def test_the_table_of_capabilities_needs_no_fleet_and_fits_a_terminal() -> None:
    finished = run("models", "--capabilities", env={"COLUMNS": "80"})
    assert finished.returncode == 0
    assert all(len(line) <= 80 for line in finished.stdout.splitlines()), finished.stdout
    for word in ("repetition_penalty", "speculative decoding", "simulated: installed", *BACKENDS):
        assert word in finished.stdout, finished.stdout
    shown = json.loads(run("models", "--capabilities", "--json").stdout)
    assert shown["engines"]["openvino (GGUF)"]["logit_bias"] == "-"
    assert shown["installed"].keys() == BACKENDS.keys()


def test_an_engine_that_is_not_installed_is_shown_with_its_command() -> None:
    code = (
        "import sys, chatfleet.engines.registry as registry;"
        "entry = registry.BACKENDS['transformers'];"
        "registry.BACKENDS['transformers'] = entry._replace(requires=('no_such_module',));"
        "from chatfleet.cli import app; app()"
    )
    command = [sys.executable, "-c", code, "models", "--capabilities"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert "pip install 'chatfleet[transformers]'" in " ".join(finished.stdout.split()), finished
