"""What this machine has to run models with. No engine's library is imported: that takes seconds, and their memory."""

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from chatfleet.engines.registry import BACKENDS, is_installed
from chatfleet.worker.engine_choice import Host

_DEV: Final = Path("/dev")


def look_at_host() -> Host:
    """Blocks for a moment."""
    installed = frozenset(engine for engine in BACKENDS if is_installed(engine))
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        return Host(installed)
    found = accelerator(torch_version, _DEV, sys.platform, platform.machine(), os.environ)
    return Host(installed, found)


def accelerator(torch_version: str, dev: Path, system: str, machine: str, environment: Mapping[str, str]) -> str | None:
    """What a PyTorch of this version computes on beside the CPU, by the device files under `dev`; None if nothing.

    The version ends in the build: +cpu, +xpu, +rocm6.4, +cu130; without one it is PyPI's, which is CUDA's on Linux.
    """
    build = torch_version.partition("+")[2]
    if system == "darwin":
        return "an Apple GPU" if machine == "arm64" else None
    if build == "cpu":
        return None
    if build == "xpu":
        return "an Intel GPU" if any(dev.glob("dri/renderD*")) else None
    if build.startswith("rocm"):
        return "an AMD GPU" if (dev / "kfd").exists() else None
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = any(dev.glob("nvidia[0-9]*")) or (dev / "dxg").exists()  # the latter under WSL
    return "a CUDA GPU" if there and not hidden else None
