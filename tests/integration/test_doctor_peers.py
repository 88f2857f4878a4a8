"""`chatfleet doctor` over servers of others. What they do otherwise is known by name; anything else is a false alarm of
ours, or news."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chatfleet.worker.model_source import bundled_model_path
from support.command import run
from support.models import write_safetensors
from support.wire import PATIENCE_S, user

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "engines"

Serve = Callable[[str], AbstractContextManager[str]]

ESSENTIAL = {
    "models.list",
    "chat.whole",
    "chat.roles",
    "chat.max_tokens",
    "chat.usage",
    "chat.n",
    "sampling.temperature",
    "sampling.logit_bias",
    "stream.form",
    "stream.same",
    "stream.no_usage",
    "stream.n",
    "stream.unicode",
    "stream.disconnect",
    "errors.bad_json",
    "tools.none",
    "structure.json_object",
    "completions.whole",
    "completions.stream",
    "extensions.tokenize",
    "extensions.top_k",
    "store.not_kept",
}
"""What both of them pass."""

OTHERWISE = {
    "llama.cpp": {
        "chat.images",
        "chat.schema",
        "completions.best_of",
        "completions.best_of_errors",
        "completions.echo",
        "completions.echo_logprobs",
        "completions.logprobs",
        "completions.top_logprobs",
        "completions.usage",
        "errors.context_length",
        "errors.empty_messages",
        "errors.form",
        "errors.logit_bias",
        "errors.max_tokens",
        "errors.n",
        "errors.no_messages",
        "errors.penalties",
        "errors.stop",
        "errors.temperature",
        "errors.top_logprobs",
        "errors.top_p",
        "errors.unknown_model",
        "errors.wrong_types",
        "extensions.continue",
        "stream.early_errors",
        "structure.no_schema",
        "tools.allowed",
        "tools.functions",
        "tools.named",
        "tools.no_tools",
        "tools.unknown_choice",
    },
    "vLLM": {
        "completions.best_of",
        "errors.context_length",
        "errors.form",
        "errors.logit_bias",
        "errors.n",
        "errors.no_messages",
        "errors.penalties",
        "errors.stop",
        "errors.top_logprobs",
        "errors.wrong_types",
        "sampling.logprobs",
        "stream.logprobs",
        "tools.functions",
    },
}
"""Where they do not do what OpenAI's reference says: empty lists of messages are answered, ranges are not held, codes
of errors are numbers, fields are ignored without a word."""


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """The base URL of a peer with the bundled model. Its environment is kept where CHATFLEET_PEERS_DIR says."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        targets = importlib.import_module("targets")
        compare = importlib.import_module("compare")
    finally:
        sys.path[:] = before
    folder = tmp_path_factory.mktemp("peers")

    class WithBundledModel(targets.Place):  # type: ignore[misc, name-defined]
        @property
        def gguf(self) -> Path:
            return bundled_model_path()

        @property
        def safetensors(self) -> Path:
            written = folder / "safetensors"
            return written if written.exists() else write_safetensors(written)

    environments = Path(os.environ.get("CHATFLEET_PEERS_DIR", compare.DEFAULT_ENV_DIR))
    place = WithBundledModel(folder, environments, folder, compare.TINY, "auto", 4, Console(stderr=True))

    @contextmanager
    def serve(name: str) -> Iterator[str]:
        port = targets.free_port()
        launch = targets.TARGETS[name](place, port)
        request = {"model": launch.model, "messages": user("a"), "max_tokens": 1}
        with targets.ServerProcess(name, launch.command, place.cores, folder, launch.environment) as process:
            process.until(
                lambda: targets.post_succeeds(port, "/v1/chat/completions", request, {}), "a first answer", 600.0
            )
            yield f"http://127.0.0.1:{port}/v1"

    yield serve


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_only_what_is_known_to_be_otherwise_fails(serve: Serve, name: str) -> None:
    with serve(name) as base_url:
        finished = run("doctor", "--base-url", base_url, "--json", "--timeout", str(PATIENCE_S), patience_s=900)
    assert finished.returncode == 1, finished.stderr
    results: list[dict[str, Any]] = json.loads(finished.stdout)["results"]
    failed = {result["name"]: result["reason"] for result in results if result["outcome"] == "fail"}
    assert failed.keys() <= OTHERWISE[name], {name_: failed[name_] for name_ in failed.keys() - OTHERWISE[name]}
    assert "errors.form" in failed
    passed = {result["name"] for result in results if result["outcome"] == "pass"}
    assert passed >= ESSENTIAL, {result["name"]: result["reason"] for result in results} | {
        "missing": ESSENTIAL - passed
    }
