"""benchmarks/gateway compares, says what it lacks, and leaves nothing behind. The figures themselves are no test's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.benchmarks import check_that_ctrl_c_ends_all

pytestmark = pytest.mark.long

COMPARE = Path(__file__).parents[2] / "benchmarks" / "gateway" / "compare.py"
TESTS = ["ns1", "ns32", "ns128", "varied32", "burst32", "ttft1", "paced"]


def run(*arguments: str, prefix: tuple[str, ...] = (), path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, str(COMPARE), "--quick", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **({} if path is None else {"PATH": path})},
    )


def test_every_test_is_measured_without_an_error(tmp_path: Path) -> None:
    finished = run("--peers", "none", "--reps", "1", "--json", str(tmp_path / "results.json"))
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr, finished.stderr
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert results["about"]["versions"].keys() == {"chatfleet"}
    assert [row["workload"] for row in results["rows"]] == TESTS
    for row in results["rows"]:
        assert row["errors"] == 0, row
        assert row["requests_per_s"] > 0 and row["latency_p50_ms"] > 0 and row["rss_mb"] > 10, row
    by_name = {row["workload"]: row for row in results["rows"]}
    assert by_name["burst32"]["cpu_s"] > 0 and by_name["burst32"]["first_p50_ms"] > 0
    assert by_name["paced"]["delay_p50_ms"] > 0 and by_name["paced"]["gap_p99_ms"] >= 10
    (paced,) = (one for one in results["rounds"] if one["workload"] == "paced")
    assert (paced["load"]["requests"], paced["load"]["events"]) == (20, 20 * 11)  # [DONE] is one, too
    for name in TESTS:
        assert f"| {name} | chatfleet |" in finished.stdout


def test_ctrl_c_ends_all_that_it_started() -> None:
    command = [sys.executable, str(COMPARE), "--quick", "--peers", "none", "--only", "ns1", "--reps", "1000"]
    # The mock backend, the controller, the gateway.
    check_that_ctrl_c_ends_all(command, "2/1000 ns1, chatfleet: ", processes=3)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    lacking = [
        (run("--peers", "none", path=str(tmp_path)), ("gcc", "apt install")),
        (run("--peers", "none", prefix=("taskset", "-c", core)), ("two cores", "--cpuset-cpus")),
        (run("--peers", "none", prefix=("prlimit", "--nofile=1024:1024")), ("open files", "ulimit")),
        (run("--peers", "litellm", path=str(tmp_path)), ("litellm", "--venv", "pip install 'litellm[proxy]'")),
        (run("--peers", "nonsense"), ("'nonsense' is none of", "nginx")),
        (run("--only", "ns1,ns2"), ("'ns2' is none of", "ns1, ns32")),
    ]
    for finished, words in lacking:
        assert finished.returncode == 2, finished
        assert "Traceback" not in finished.stderr, finished.stderr
        for word in words:
            assert word in finished.stderr, finished.stderr
