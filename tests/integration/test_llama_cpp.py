"""A stranger in the fleet: llama.cpp's server, from PyPI, in an environment of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from chatfleet.worker.model_source import bundled_model_path
from support.fleet import until
from support.processes import ControllerProcess, GatewayProcess
from support.wire import PATIENCE_S, failed, user

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MODEL = "tiny-on-llama-cpp"
SERVER = Path(__file__).parents[2] / "benchmarks" / "engines" / "llama_server.py"
QUESTION = user("What is the capital of France?")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with xllamacpp."""
    environment = tmp_path_factory.mktemp("llama") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    for packages in (["--upgrade", "pip"], ["xllamacpp>=2026.1"]):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, timeout=400)
    return python


class LlamaServer:
    """Started and ended by the test, on one port."""

    def __init__(self, python: Path, port: int) -> None:
        self._command = [str(python), str(SERVER), str(bundled_model_path()), MODEL, str(port), "4", "2"]
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("listening")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@pytest.fixture
def server(python: Path, free_port: int) -> Iterator[LlamaServer]:
    server = LlamaServer(python, free_port)
    server.start()
    yield server
    server.kill()


def chatfleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chatfleet", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_llama_cpp_registers_answers_goes_and_comes_back(server: LlamaServer) -> None:
    with (
        ControllerProcess("--heartbeat-interval", "0.5", "--expiry", "2") as controller,
        GatewayProcess("--retry-timeout", "0.3", controllers=[controller]) as gateway,
        gateway.http() as http,
    ):
        registered = chatfleet("register", server.url, "--controller-url", controller.url)
        assert registered.returncode == 0, registered
        gateway.until_served([MODEL])
        shown = chatfleet("status", "--once", "--controller-url", controller.url).stdout
        assert MODEL in shown and "ready" in shown

        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)  # type: ignore[arg-type]
            assert "Paris" in (answer.choices[0].message.content or "")
            stream = client.chat.completions.create(
                model=MODEL,
                messages=QUESTION,  # type: ignore[arg-type]
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert "Paris" in text and len(chunks) > 5
            assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
        error = failed(http.post("/v1/chat/completions", json={"model": MODEL, "messages": 5}), 400)
        assert "messages" in error["message"]
        hidden = http.post("/v1/chat/completions", json={"messages": QUESTION, "chat_template": "x", "max_tokens": 2})
        assert hidden.status_code == 200 and hidden.headers["x-chatfleet-ignored"] == "chat_template"

        server.kill()
        until(lambda: not gateway.served(), "it is left out")
        failed(http.post("/v1/chat/completions", json={"model": MODEL, "messages": QUESTION}), 503)
        server.start()
        gateway.until_served([MODEL])
        assert http.post("/v1/chat/completions", json={"model": MODEL, "messages": QUESTION}).status_code == 200
        assert chatfleet("unregister", server.url, "--controller-url", controller.url).returncode == 0
        until(lambda: not gateway.served(), "it is unregistered")
