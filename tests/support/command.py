"""The `chatfleet` command, run to its end."""

import os
import subprocess
import sys

from support.processes import GUARDED


def run(
    *arguments: str, env: dict[str, str] | None = None, patience_s: float = 100.0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GUARDED), *arguments],
        capture_output=True,
        text=True,
        timeout=patience_s,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})},
    )


def refused(finished: subprocess.CompletedProcess[str], *words: str) -> None:
    """It ended with status 2 and one message that has these words."""
    output = finished.stdout + finished.stderr
    assert finished.returncode == 2, output
    assert "Traceback" not in output and "Error" in output, output
    assert len(output.strip().splitlines()) <= 6, output
    for word in words:
        assert word in output, output
