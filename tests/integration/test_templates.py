"""Chat templates given with --chat-template, well-meant and not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import WorkerProcess
from support.wire import Json, failed, user

CHAT = "/v1/chat/completions"

# One template for all: a request chooses what it does through chat_template_kwargs.
TEMPLATE = """\
{%- set ns = namespace(s='x') %}
{%- if mode == 'tools' %}{{ tools | tojson }}
{%- elif mode == 'variables' %}{{ colour }}/{{ shade }}
{%- elif mode == 'refuses' %}{{ raise_exception('Roles must alternate.') }}
{%- elif mode == 'fails' %}{{ messages[99].content.x }}
{%- elif mode == 'divides' %}{{ 1 // 0 }}
{%- elif mode == 'loops' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{%- elif mode == 'recurses' %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{%- elif mode == 'writes' %}{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}
{%- elif mode == 'doubles' %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}
{%- elif mode == 'joins' %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}
{%- elif mode == 'tildes' %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}
{%- elif mode == 'repeats' %}{{ ('x' * 1000000000) | length }}
{%- elif mode == 'powers' %}{{ 9 ** 999999999 }}
{%- elif mode == 'centers' %}{{ 'x'.center(1000000000) }}
{%- elif mode == 'formats' %}{{ '%1000000000d' | format(1) }}
{%- elif mode == 'classes' %}{{ ''.__class__.__mro__[1].__subclasses__() }}
{%- elif mode == 'globals' %}{{ raise_exception.__globals__ }}
{%- elif mode == 'mutates' %}{{ messages.append(1) }}
{%- elif mode == 'reads' %}{% include '/etc/passwd' %}
{%- else %}{% for message in messages %}{{ message.content }}{% endfor %}
{%- endif %}"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    path: Path = tmp_path_factory.mktemp("templates") / "template.jinja"
    path.write_text(TEMPLATE)
    arguments = ("--chat-template", str(path), "--chat-template-kwargs", '{"colour": "red", "shade": "dark"}')
    with WorkerProcess("--engine", "simulated", "--tool-parser", "none", *arguments) as worker:
        yield worker


def rendered(worker: WorkerProcess, request: Json) -> str:
    with worker.http() as http:
        answer = http.post(CHAT, json={"messages": user("hi"), "max_tokens": 1, **request})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["usage"]["prompt_tokens"])


def test_tools_are_passed_to_the_template(worker: WorkerProcess) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    mode = {"chat_template_kwargs": {"mode": "tools"}}
    text = '[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]'
    assert rendered(worker, {**mode, "tools": [tool]}) == str(len(text))
    assert rendered(worker, {**mode, "tools": [tool], "tool_choice": "none"}) == str(len("null"))


def test_the_workers_variables_reach_the_template_and_a_requests_win(worker: WorkerProcess) -> None:
    assert rendered(worker, {"chat_template_kwargs": {"mode": "variables"}}) == str(len("red/dark"))
    request = {"chat_template_kwargs": {"mode": "variables", "colour": "orange"}}
    assert rendered(worker, request) == str(len("orange/dark"))


def test_a_template_that_refuses_says_why(worker: WorkerProcess) -> None:
    with worker.http() as http:
        request = {"messages": user("hi"), "chat_template_kwargs": {"mode": "refuses"}}
        for stream in (False, True):
            error = failed(http.post(CHAT, json={**request, "stream": stream}), 400, param="messages")
            assert "Roles must alternate." in error["message"]


@pytest.mark.parametrize(
    "mode",
    [
        *("fails", "divides", "loops", "recurses", "writes", "doubles", "joins", "tildes", "repeats", "powers"),
        *("centers", "formats", "classes", "globals", "mutates", "reads"),
    ],
)
def test_a_template_that_does_harm_fails_its_request_alone(worker: WorkerProcess, mode: str) -> None:
    with worker.http() as http:
        failed(http.post(CHAT, json={"messages": user("hi"), "chat_template_kwargs": {"mode": mode}}), 400)
        assert http.post(CHAT, json={"messages": user("hi"), "max_tokens": 1}).status_code == 200
    assert worker.alive()


def test_a_request_cannot_replace_what_the_template_is_given(worker: WorkerProcess) -> None:
    """The template's own arguments win over variables of the same name."""
    assert rendered(worker, {"chat_template_kwargs": {"messages": [], "add_generation_prompt": 5}}) == "2"
