"""What README.md tells a reader to type is typed here."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from chatfleet.worker.model_source import bundled_model_path
from support.fake_openai import FakeOpenAI
from support.fleet import until
from support.processes import CommandProcess
from support.wire import user

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def served() -> Iterator[CommandProcess]:
    """`chatfleet serve` as README starts it, on a free port."""
    with CommandProcess("serve", "--port", "0") as process:
        yield process


def test_the_first_screen_has_exactly_two_commands() -> None:
    assert [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()] == ["make serve", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in ("serve", "test", "test-all", "model"))


def test_the_curl_commands_answer(served: CommandProcess) -> None:
    commands = [block for block in blocks("sh") if block.startswith("curl")]
    assert commands
    for command in commands:
        said = subprocess.run(
            command.replace(URL, served.url), shell=True, capture_output=True, text=True, timeout=60, check=True
        )
        assert '"error"' not in said.stdout
        assert '"object"' in said.stdout


def test_the_python_snippets_run(served: CommandProcess) -> None:
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        said = subprocess.run(
            [sys.executable, "-c", snippet.replace(URL, served.url)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert said.stdout.strip()


def test_the_transcript_is_real(served: CommandProcess) -> None:
    """The conversation in README is what `chatfleet chat` prints, answer for answer."""
    transcript = next(block for block in blocks("text") if block.startswith("$ chatfleet chat"))
    command, *lines = transcript.strip().splitlines()
    questions = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    answers = [line for line in lines if not line.startswith("> ")]
    arguments = command.removeprefix("$ chatfleet ").split()
    said = subprocess.run(
        [sys.executable, "-m", "chatfleet", *arguments, "--base-url", f"{served.url}/v1"],
        input="\n".join([*questions, "/exit", ""]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "400"},
    )
    assert len(questions) == len(answers) > 2
    for answer in answers:
        assert answer in said.stdout


def test_serve_prints_ready_to_paste_snippets(served: CommandProcess) -> None:
    curl = re.search(r"^  (curl .*?\n    -d '.*?')$", served.output, re.MULTILINE | re.DOTALL)
    assert curl is not None, served.output
    said = subprocess.run(curl[1], shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert '"chat.completion"' in said.stdout
    sdk = re.search(r"^(  from openai.*?print\(.*?\))$", served.output, re.MULTILINE | re.DOTALL)
    assert sdk is not None, served.output
    snippet = re.sub(r"^  ", "", sdk[1], flags=re.MULTILINE)
    pasted = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
    assert pasted.stdout.strip()


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_three_machines_make_a_fleet(free_port: int) -> None:
    """The commands for three machines, on one: only addresses, ports and the model's path are other."""
    token_block, machines, others = (block for block in blocks("sh") if "chatfleet " in block or "TOKEN" in block)
    token = subprocess.run(
        f"{token_block}\nprintenv CHATFLEET_FLEET_TOKEN",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    controller_url = f"http://127.0.0.1:{free_port}"

    def arguments(line: str) -> list[str]:
        line = line.replace("http://10.0.0.1:21001", controller_url)
        return line.replace("path/to/model.gguf", str(bundled_model_path())).split()[1:]

    commands = [arguments(line) for line in machines.splitlines() if line.startswith("chatfleet")]
    assert [command[0] for command in commands] == ["controller", "worker", "gateway"]
    assert all(command[command.index("--host") + 1] == "0.0.0.0" for command in commands)
    env = {"CHATFLEET_FLEET_TOKEN": token}
    with FakeOpenAI("theirs") as fake, ExitStack() as running:
        for command, port in zip(commands, (free_port, 0, 0), strict=True):
            process = running.enter_context(CommandProcess(*command, "--port", str(port), env=env))
        key = commands[2][commands[2].index("--api-key") + 1]
        with httpx.Client(base_url=process.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
            until(lambda: http.get("/ready").status_code == 200, "the worker joins")
            asked = http.post("/v1/chat/completions", json={"messages": user("What is the capital of France?")})
            assert "Paris" in asked.json()["choices"][0]["message"]["content"]
            export, *steps = others.splitlines()
            env |= {
                "CHATFLEET_CONTROLLER_URLS": export.partition("=")[2].replace("http://10.0.0.1:21001", controller_url)
            }
            for step in steps:
                said = subprocess.run(
                    [sys.executable, "-m", "chatfleet", *step.replace("http://10.0.0.4:8080", fake.url).split()[1:]],
                    env={**os.environ, **env},
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert said.returncode == 0, said
                served = step.split()[1] != "unregister"
                until(
                    lambda served=served: ("theirs" in http.get("/v1/models").text) == served,  # type: ignore[misc]
                    f"after {step}",
                )
