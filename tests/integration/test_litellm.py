"""LiteLLM as a client, from PyPI, in an environment of its own: it wants another version of the `openai` package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Endpoint

CLIENT = Path(__file__).parents[1] / "support" / "litellm_client.py"


pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with LiteLLM."""
    environment = tmp_path_factory.mktemp("litellm") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "litellm>=1.100", "mcp"], check=True, timeout=400)
    return python


def test_litellm_chats_streams_calls_and_understands_errors(tiny_endpoint: Endpoint, python: str) -> None:
    told = subprocess.run(
        [python, str(CLIENT), tiny_endpoint.url],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stdout.splitlines()[-1])
    assert "Paris" in said["whole"] and said["stream"] == said["whole"]
    assert (said["call"], said["finish_reason"]) == (["get_weather", {"location": "Oslo"}], "tool_calls")
    assert said["usage"] is True
    assert "top_p" in said["errors"][0]
