"""What holds for every benchmark that starts processes."""

import os
import signal
import subprocess
from collections.abc import Sequence

import psutil

from support.serve import until_gone
from support.wire import PATIENCE_S


def check_that_ctrl_c_ends_all(command: Sequence[str], progress: str, processes: int) -> None:
    """Interrupt a benchmark when it says a line that begins with `progress`, and has so many processes at least: they
    end with it, and it says nothing of its own code."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            assert any(line.startswith(progress) for line in process.stderr)
            started = psutil.Process(process.pid).children(recursive=True)
            assert len(started) >= processes
            os.killpg(process.pid, signal.SIGINT)
            said = process.stderr.read()
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()
    until_gone(started)
    assert "Traceback" not in said
