"""Nothing is lost whatever breaks: every request ends complete, as if nothing had."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.chaos import Plan, Report, openvino_plan, run_chaos, simulated_plan

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

Run = Callable[[Plan], Report]


@pytest.fixture
def run(tmp_path: Path, record_property: Callable[[str, object], None]) -> Run:
    """Runs a plan with the seed in CHAOS_SEED, else one of the clock; the counts are printed behind all tests."""

    def run(plan: Plan) -> Report:
        report = run_chaos(plan, int(os.environ.get("CHAOS_SEED") or time.time()), tmp_path)
        record_property("summary", report.summary())
        return report

    return run


def test_every_request_of_a_disturbed_fleet_ends_as_if_undisturbed(run: Run) -> None:
    report = run(simulated_plan())
    assert not report.problems, str(report)
    assert report.resumed and report.tally.complete["streams"] and report.tally.complete["whole answers"], str(report)


def test_streams_of_a_real_model_go_on_with_the_same_tokens(run: Run) -> None:
    report = run(openvino_plan())
    assert not report.problems, str(report)
    assert report.resumed and report.tally.complete["streams"], str(report)
