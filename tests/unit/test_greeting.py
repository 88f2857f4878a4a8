"""What `chatfleet serve` shows while it starts and when it is ready."""

import io
import json
import shlex

import pytest
from rich.text import Text

from chatfleet.cli.greeting import REMINDER_S, Start, awaited, served_models, snippets
from chatfleet.supervisor.channel import Announcement
from chatfleet.supervisor.decisions import MISCONFIGURED, Supervision
from chatfleet.supervisor.log import FleetLog, LogConsole
from chatfleet.supervisor.parts import Part, Role

PARTS = [
    Part(name="controller", role=Role.CONTROLLER, command=("true",), grace_s=1),
    Part(name="a", role=Role.WORKER, command=("true",), grace_s=1),
    Part(name="a#2", role=Role.WORKER, command=("true",), grace_s=1),
    Part(name="b", role=Role.WORKER, command=("true",), grace_s=1),
    Part(name="gateway", role=Role.GATEWAY, command=("true",), grace_s=1),
    Part(name="gateway#2", role=Role.GATEWAY, command=("true",), grace_s=1),
]
WORKERS = ("a", "a#2", "b")
GATEWAYS = ("gateway", "gateway#2")


@pytest.fixture
def supervision() -> Supervision:
    starting = Supervision(PARTS, 0.0)
    starting.due(0.0)
    return starting


class Shown:
    """A start that is watched, with what it prints where there is no terminal."""

    def __init__(self) -> None:
        self.console = LogConsole()
        self.console.file = io.StringIO()
        self.greeted: list[tuple[str, ...]] = []
        log = FleetLog(self.console, [part.name for part in PARTS])
        self.start = Start(self.console, log, self.greeted.append, 0.0)

    @property
    def output(self) -> str:
        return self.console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def announce(supervision: Supervision, name: str, *models: str) -> None:
    supervision.announced(name, Announcement(f"http://{name}", models), 0.0)


def complete(supervision: Supervision) -> None:
    announce(supervision, "controller")
    for name in WORKERS:
        announce(supervision, name, name[0])
    for name in GATEWAYS:
        announce(supervision, name, "a", "b", "an-alias")


def test_it_is_complete_when_every_gateway_serves_what_every_worker_does(supervision: Supervision) -> None:
    assert awaited(supervision) == [part.name for part in PARTS]
    for name in GATEWAYS:
        announce(supervision, name)
    announce(supervision, "controller")
    assert awaited(supervision) == ["a", "a#2", "b"]
    announce(supervision, "b", "b", "b-too")
    assert awaited(supervision) == ["a", "a#2", "gateway", "gateway#2"]
    announce(supervision, "a", "a")
    announce(supervision, "gateway", "a", "b", "b-too")
    announce(supervision, "gateway#2", "a", "b")
    assert awaited(supervision) == ["a#2", "gateway#2"]
    announce(supervision, "a#2", "a")
    announce(supervision, "gateway#2", "b-too", "b", "a")
    assert awaited(supervision) == []
    assert served_models(supervision) == ("a", "b", "b-too")


def test_it_greets_once_however_often_parts_come_back(supervision: Supervision) -> None:
    shown = Shown()
    shown.start.watch(supervision, 0.0)
    assert shown.greeted == []
    complete(supervision)
    assert shown.start.watch(supervision, 1.0) is None
    supervision.ended("a", -9, 2.0)
    assert shown.start.watch(supervision, 2.0) is None
    supervision.due(3.0)
    complete(supervision)
    shown.start.watch(supervision, 3.0)
    assert shown.greeted == [("a", "b")]


def test_what_takes_long_is_named_every_ten_seconds(supervision: Supervision) -> None:
    shown = Shown()
    complete(supervision)
    supervision.ended("b", 1, 0.0)
    assert shown.start.watch(supervision, 1.0) == REMINDER_S
    assert shown.output == ""
    assert shown.start.watch(supervision, REMINDER_S) == 2 * REMINDER_S
    shown.start.watch(supervision, REMINDER_S + 1)
    assert shown.output.splitlines() == ["chatfleet  | Waiting for b (10 s)"]


def test_a_stop_is_said_once_and_not_where_an_error_is_its_reason(supervision: Supervision) -> None:
    shown = Shown()
    supervision.stop()
    shown.start.watch(supervision, 1.0)
    shown.start.watch(supervision, 2.0)
    assert shown.output.count("Stopping") == 1
    failed = Supervision(PARTS, 0.0)
    failed.due(0.0)
    failed.ended("a", MISCONFIGURED, 0.0)
    other = Shown()
    other.start.watch(failed, 1.0)
    assert other.output == ""


def test_names_with_quotes_can_be_pasted_too() -> None:
    name = """it's "a [bold]model[/]"""
    text = Text.from_markup(snippets("http://here", [name], with_key=False)).plain
    command = text.partition("curl\n")[2].partition("\n\n")[0]
    arguments = shlex.split(command)
    assert json.loads(arguments[arguments.index("-d") + 1])["model"] == name
    snippet = text.partition("OpenAI SDK\n")[2].partition("\n\n")[0]
    compile("if True:\n" + snippet, "snippet", "exec")
    assert f"Serving {name} on http://here/v1" in text
