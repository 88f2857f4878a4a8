"""What README.md tells a reader to type is typed here."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import CommandProcess

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
