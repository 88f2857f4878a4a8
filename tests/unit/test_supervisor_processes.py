"""A supervisor over small commands of every kind: real processes, without a fleet."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from chatfleet.supervisor.process import ending_words
from support.wire import PATIENCE_S

PRELUDE = """
import os, signal, subprocess, sys, threading, time
from chatfleet.supervisor.channel import announce_to_parent
"""

SUPERVISE = """
import json, os, sys
from chatfleet.supervisor.log import FleetLog, LogConsole
from chatfleet.supervisor.parts import Part, Role
from chatfleet.supervisor.supervisor import Supervisor

def part(name, role, script):
    command = (sys.executable, "-c", script) if script else ("/no/such/command",)
    return Part(name=name, role=Role[role], command=command, grace_s=float(sys.argv[2]))

parts = [part(**each) for each in json.loads(sys.argv[1])]
def watch(supervision, now):
    announced = {name: [*state.announcement.models] for name, state in supervision.states.items() if state.announcement}
    if len(announced) == len(parts):
        print("READY", json.dumps(announced), flush=True)
sys.exit(Supervisor(parts, FleetLog(LogConsole(), [each.name for each in parts]), watch).run())
"""


def script(body: str) -> str:
    return PRELUDE + textwrap.dedent(body)


SERVES = script("""
    announce = announce_to_parent()
    announce("http://here", (sys.argv[0], "model"))
    time.sleep(1000)
""")


class Supervised:
    """A supervisor of scripts, as a process."""

    def __init__(self, *, grace_s: float = 10.0, **scripts: str) -> None:
        roles = {"gateway": "GATEWAY", "controller": "CONTROLLER"}
        parts = [{"name": name, "role": roles.get(name, "WORKER"), "script": body} for name, body in scripts.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, json.dumps(parts), str(grace_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "CHATFLEET_PORT": "1", "chatfleet_host": "nowhere"},
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def until(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.output.count(text) < times:
            assert time.monotonic() < deadline and self._reader.is_alive(), f"no {text!r} in:\n{self.output}"
            time.sleep(0.01)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals | None = signal.SIGINT) -> int:
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            descendants = self.children()
            self.process.kill()
            self.process.wait()
            for each in descendants:
                if each.is_running():
                    each.kill()
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


def test_it_learns_what_is_served_and_stops_with_nothing_left() -> None:
    with Supervised(gateway=SERVES, worker=SERVES) as supervised:
        supervised.until("READY")
        assert '"worker": ["-c", "model"]' in supervised.output
        children = supervised.children()
        assert len(children) == 2
        assert supervised.end() == 0
        gone(children)


def test_a_part_that_ends_is_named_with_its_reason_and_comes_back() -> None:
    with Supervised(gateway=SERVES, worker=SERVES) as supervised:
        supervised.until("READY")
        for child in supervised.children():
            child.kill()
        supervised.until("memory runs out); it starts again in 0.5 s.")
        supervised.until("worker is back.")
        supervised.until("gateway is back.")
        assert supervised.end() == 0


def test_a_part_that_cannot_be_configured_ends_everything_with_its_message() -> None:
    wrong = script("print('what is wrong', file=sys.stderr); sys.exit(2)")
    with Supervised(gateway=SERVES, worker=wrong) as supervised:
        assert supervised.end(None) == 2
        assert "worker    | what is wrong\n" in supervised.output
        assert "worker cannot start" in supervised.output


def test_the_same_status_later_is_a_crash() -> None:
    later = script("announce_to_parent()('http://here', ()); time.sleep(0.5); sys.exit(2)")
    with Supervised(worker=later) as supervised:
        supervised.until("worker ended (exit status 2); it starts again", times=2)
        assert supervised.end() == 0


def test_a_part_that_fails_before_it_serves_is_tried_again_ever_more_slowly() -> None:
    with Supervised(worker="raise SystemExit('no')", gateway=SERVES) as supervised:
        supervised.until("worker ended (exit status 1); it starts again in 1 s.")
        assert "worker    | no" in supervised.output
        assert supervised.end() == 0


def test_a_part_that_cannot_be_started_at_all_is_tried_again_too() -> None:
    with Supervised(worker="", gateway=SERVES) as supervised:
        supervised.until("worker could not be started: ")
        supervised.until("it starts again in 1 s.")
        assert supervised.end() == 0


STUBBORN = script("""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce_to_parent()("http://here", ())
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    print("grandchild", grandchild.pid, flush=True)
    while True:
        time.sleep(1)
""")


def test_a_second_interrupt_kills_at_once_whatever_a_part_has_started() -> None:
    with Supervised(worker=STUBBORN) as supervised:
        supervised.until("grandchild")
        children = supervised.children()
        assert len(children) == 2
        supervised.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_S
        while supervised.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.5)  # a person's pace: what comes faster is taken for one
            supervised.process.send_signal(signal.SIGINT)
        assert supervised.end(None) == 130
        gone(children)


def test_a_part_that_ignores_the_request_to_stop_is_killed_after_its_time() -> None:
    with Supervised(worker=STUBBORN, grace_s=0.5) as supervised:
        supervised.until("grandchild")
        children = supervised.children()
        assert supervised.end() == 0
        assert "worker did not stop within 0.5 s and is killed." in supervised.output
        gone(children)


def test_two_signals_at_once_are_one() -> None:
    """`timeout` and some shells send a signal to the process and to its group."""
    slow = script("""
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print("in order", flush=True), sys.exit(0)))
        announce_to_parent()("http://here", ())
        while True:
            time.sleep(1)
    """)
    with Supervised(worker=slow) as supervised:
        supervised.until("READY")
        supervised.process.send_signal(signal.SIGTERM)
        supervised.process.send_signal(signal.SIGINT)
        assert supervised.end(None) == 0
        assert "in order" in supervised.output


def test_what_a_part_leaves_behind_is_killed_with_it() -> None:
    with Supervised(worker=STUBBORN) as supervised:
        supervised.until("grandchild")
        worker, grandchild = sorted(supervised.children(), key=lambda process: process.create_time())
        worker.kill()
        gone([worker, grandchild])
        supervised.until("worker is back.")


def test_no_part_outlives_a_supervisor_that_was_killed() -> None:
    with Supervised(gateway=SERVES, worker=SERVES) as supervised:
        supervised.until("READY")
        children = supervised.children()
        supervised.process.kill()
        gone(children)


def test_a_part_that_is_stuck_does_not_either() -> None:
    stuck = script("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        announce_to_parent()("http://here", ())
        while True:
            pass
    """)
    with Supervised(worker=stuck, grace_s=0.5) as supervised:
        supervised.until("READY")
        children = supervised.children()
        supervised.process.kill()
        gone(children)


def test_a_part_gets_its_own_settings_and_none_of_its_parents() -> None:
    tells = script("""
        print("settings", sorted(name for name in os.environ if name.upper().startswith("CHATFLEET_")), flush=True)
        announce_to_parent()("http://here", ())
        print("afterwards", sorted(name for name in os.environ if name.upper().startswith("CHATFLEET_")), flush=True)
        time.sleep(1000)
    """)
    with Supervised(worker=tells) as supervised:
        supervised.until("afterwards")
        assert "settings ['CHATFLEET_PARENT_FD', 'CHATFLEET_PARENT_GRACE_S']" in supervised.output
        assert "afterwards []" in supervised.output


def test_floods_and_garbage_do_not_hold_it_up() -> None:
    floods = script(r"""
        announce_to_parent()("http://here", ())
        while True:
            os.write(1, b"\xff\x00\x1b[2J" * 10000)
            os.write(2, b"Traceback\n  File\n")
    """)
    with Supervised(worker=floods, gateway=SERVES) as supervised:
        supervised.until("READY")
        supervised.until("worker    |   File")
        assert supervised.end() == 0
        assert "\x1b" not in supervised.output and "\0" not in supervised.output


def test_what_is_no_announcement_is_said_and_changes_nothing() -> None:
    speaks = script("""
        fd = int(os.environ["CHATFLEET_PARENT_FD"])
        os.write(fd, b"hello\\n")
        time.sleep(1000)
    """)
    with Supervised(worker=speaks, gateway=SERVES) as supervised:
        supervised.until("worker announced what cannot be read")
        assert supervised.end() == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended (exit status 0)"), (-11, "was ended by SIGSEGV"), (-63, "was ended by signal 63")],
)
def test_how_a_part_ended_is_said_in_words(status: int, words: str) -> None:
    assert ending_words(status) == words
