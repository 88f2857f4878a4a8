"""What the gateway's benchmark has that this one needs, too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "gateway"))

from machine import CannotRun, cpu_model, usage  # noqa: E402
from options import at_least_one, run_to_the_end, some_of  # noqa: E402
from processes import ServerProcess, free_port, post_succeeds  # noqa: E402

__all__ = [
    "CannotRun",
    "ServerProcess",
    "at_least_one",
    "cpu_model",
    "run_to_the_end",
    "free_port",
    "post_succeeds",
    "some_of",
    "usage",
]
