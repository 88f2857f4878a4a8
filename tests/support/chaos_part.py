"""Runs guarded.py in a process that ends with the one that started it, even where that was killed (Linux)."""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ["CHAOS_PARENT"]):  # it has ended meanwhile
            sys.exit(1)
    runpy.run_path(str(Path(__file__).with_name("guarded.py")), run_name="__main__")
