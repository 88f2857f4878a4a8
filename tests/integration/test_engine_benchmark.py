"""benchmarks/engines compares, says what it lacks, and leaves nothing behind. The figures themselves are no test's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.benchmarks import check_that_ctrl_c_ends_all
from support.wire import PATIENCE_S

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

COMPARE = Path(__file__).parents[2] / "benchmarks" / "engines" / "compare.py"
SMALL = ("--model", "random-tiny", "--streams", "1,2", "--tokens-out", "8", "--prefill-tokens", "100")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def command(model_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(COMPARE), *SMALL, "--model-dir", str(model_dir), *arguments]


def run(model_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model_dir, *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        env={**os.environ, **environment},
    )


def test_a_target_is_measured_and_one_that_cannot_be_had_is_named(model_dir: Path, tmp_path: Path) -> None:
    wanted = ["--targets", "chatfleet openvino,llama.cpp", "--repeats", "2", "--env-dir", str(tmp_path)]
    written = ["--json", str(tmp_path / "results.json"), "--svg", str(tmp_path / "plot.svg")]
    nothing = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    finished = run(model_dir, *wanted, *written, **nothing)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert [one["workload"] for one in results["summaries"]] == ["1 stream", "2 streams", "prefill"]
    assert len(results["rounds"]) == 6
    for one in results["rounds"]:
        assert one["tokens_per_s"] > 0 and one["first_token_ms"] > 0 and one["rss_mb"] > 50, one
    assert results["targets"]["chatfleet openvino"]["start_s"] > 0
    assert "xllamacpp" in results["left_out"]["llama.cpp"]
    assert "not measured, for they did not start: llama.cpp" in finished.stdout
    assert "| 2 | chatfleet openvino |" in finished.stdout
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_ctrl_c_ends_all_that_it_started(model_dir: Path) -> None:
    endless = command(model_dir, "--targets", "chatfleet openvino", "--repeats", "100000")
    # The worker and its engine.
    check_that_ctrl_c_ends_all(endless, "2/300000 2 streams, chatfleet openvino: ", processes=2)


def test_what_is_wrong_is_named(model_dir: Path, tmp_path: Path) -> None:
    nonsense = run(model_dir, "--targets", "nonsense")
    assert nonsense.returncode == 2
    assert "'nonsense' is none of" in nonsense.stderr and "llama.cpp" in nonsense.stderr
    alone = run(model_dir, "--targets", "llama.cpp", "--env-dir", str(tmp_path), PIP_NO_INDEX="1")
    assert alone.returncode == 2
    assert "No target has started" in alone.stderr and "Traceback" not in alone.stderr
