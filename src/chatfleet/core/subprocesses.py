"""What starting processes of our own takes: where they find the package, and when to start them again."""

import os
from pathlib import Path
from typing import Final

_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]


def child_environment() -> dict[str, str]:
    """Our environment; where ChatFleet runs from a source tree, that tree is on the child's path too."""
    environment = dict(os.environ)
    if _PACKAGE_ROOT.name not in ("site-packages", "dist-packages"):
        paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        if str(_PACKAGE_ROOT) not in paths:
            environment["PYTHONPATH"] = os.pathsep.join([*paths, str(_PACKAGE_ROOT)])
    return environment


def restart_delay_s(failures: int, first_s: float, max_s: float) -> float:
    """How long to wait before a start, after so many earlier failures without a spell of health."""
    return float(min(first_s * 2 ** min(failures, 32), max_s))
