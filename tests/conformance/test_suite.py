"""The suite itself: it leaves no engine out, and says how each case ended."""

from types import SimpleNamespace
from typing import Any

from chatfleet.engines.registry import BACKENDS
from conformance.targets import TARGETS
from support.conformance_table import RECORD, conformance_lines


def test_every_engine_is_a_target_and_one_of_its_targets_is_in_the_short_suite() -> None:
    assert {target.engine for target in TARGETS if target.core != ()} == set(BACKENDS)
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def report(target: str, case: str, *refused: str, when: str = "call", **fields: Any) -> SimpleNamespace:
    properties = [(RECORD, [target, "test_file.py", case, list(refused)])]
    return SimpleNamespace(**{"when": when, "failed": False, "skipped": False, "user_properties": properties} | fields)


def test_the_report_says_how_each_case_ended_for_each_engine() -> None:
    missing = ("conftest.py", 1, "Skipped: needs pip install 'chatfleet[other]'")
    lines = list(
        conformance_lines(
            [
                report("one", "a case"),
                report("one", "a case", when="teardown"),
                report("one", "a case", "No such setting."),
                report("one", "another"),
                report("two", "a case", "Nothing of the kind."),
                report("two", "another", failed=True),
                report("three", "a case", when="setup", skipped=True, longrepr=missing),
            ]
        )
    )
    table = [line.split("  ") for line in lines if "refused:" not in line]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in table if any(line)]
    assert cells == [
        ["conformance", "one", "two", "three"],
        ["a case", "1/2 refused", "refused", "Skipped: needs pip install 'chatfleet[other]'"],
        ["another", "passed", "FAILED", "-"],
    ]
    assert lines[-2:] == ["one refused: No such setting.", "two refused: Nothing of the kind."]


def test_without_such_cases_there_is_no_report() -> None:
    assert list(conformance_lines([SimpleNamespace(user_properties=[("summary", "3 of 3")])])) == []
