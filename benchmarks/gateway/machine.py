"""What the comparison needs of a Linux machine: two cores, open files, a compiler, and what processes cost it."""

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OPEN_FILES = 8192
"""1000 streams take 2000 descriptors in a gateway, and the mock backend as many again where connections are kept."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CannotRun(Exception):
    """The comparison cannot be made here. The message says why, and what to do."""


@dataclass(frozen=True)
class Cores:
    """Core numbers: `gateways` for what is measured, `load` for the load generator and the mock backend."""

    gateways: tuple[int, ...]
    load: int


def choose_cores(processes: int) -> Cores:
    """As many cores for the gateways as they have processes, short of the last, which is the load's."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise CannotRun(
            "This needs two cores, one for the gateways and one for the load, and may use one. Give the machine or the "
            "container another (docker run --cpuset-cpus 0,1), and run it without taskset."
        )
    return Cores(tuple(usable[:-1][:processes]), usable[-1])


def raise_open_files() -> None:
    """For this process and all that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise CannotRun(
            f"This needs {OPEN_FILES} open files, and the limit is {hard}. Raise it: as root `ulimit -Hn {OPEN_FILES}` "
            f"in the shell, or docker run --ulimit nofile={OPEN_FILES}."
        )
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def require(command: str, advice: str) -> str:
    """The path of a command, also where only root's PATH has it."""
    found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise CannotRun(f"This needs {command}, which is not on PATH. {advice}")
    return found


def compile_c(source: Path, folder: Path) -> Path:
    compiler = require("gcc", "Install it: apt install gcc libc6-dev (Debian, Ubuntu), dnf install gcc (Fedora).")
    program = folder / source.stem
    compiled = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if compiled.returncode != 0:
        raise CannotRun(
            f"{source.name} does not compile here. It needs gcc, the headers of the C library (libc6-dev), glibc 2.35 "
            f"and Linux 5.11 or later. gcc says:\n{compiled.stdout}"
        )
    return program


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


@dataclass(frozen=True)
class Usage:
    """What processes and their descendants have taken so far: CPU in seconds, to a hundredth; memory now, in MB."""

    cpu_s: float
    rss_mb: float


def usage(pids: Iterable[int]) -> Usage:
    ticks = pages = 0
    for pid in _with_descendants(pids):
        fields = _stat(pid)
        if fields is not None:
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
    return Usage(ticks / _TICKS_PER_S, pages * resource.getpagesize() / 1e6)


def _with_descendants(pids: Iterable[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _stat(int(name))
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    to_see = list(pids)
    while to_see:
        pid = to_see.pop()
        found.append(pid)
        to_see += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()
