"""Native kernels for what lies between the products of a decoder layer, on CPUs.

torch's own operations take 18 of the 56 ms that a step of 16 rows of a 0.4B model takes: each is short, and there are
25 of them in a layer. Here they are four. They are compiled when they are first wanted (12 s with g++ 12) and kept for
this CPU, this torch and this Python. Without a compiler torch's operations stay in use.
"""

import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol, cast

import torch

logger = logging.getLogger(__name__)

ALL_KEYS: Final = 2**62
"""A window that no sequence is longer than."""

_SOURCE: Final = Path(__file__).with_name("kernels.cpp")
_MODULE: Final = "chatfleet_kernels"
_FLAGS: Final = (
    *("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=c++20", "-fPIC"),
    *("-Wno-psabi", "-Wno-ignored-attributes", f"-DCHATFLEET_KERNELS={_MODULE}"),
)
_LIBRARIES: Final = ("-ltorch_python", "-ltorch_cpu", "-lc10")
_COMPILE_TIMEOUT_S: Final = 180


class Kernels(Protocol):
    """Tensors are contiguous, on the CPU, in bfloat16 or float32 (the same in one call); sums are in float32 and
    results are rounded once. A row's result does not depend on the other rows. Raises RuntimeError for other shapes."""

    def rms_norm(self, rows: torch.Tensor, weight: torch.Tensor, epsilon: float, /) -> torch.Tensor:
        """From [rows, size] to the same. `weight` [size] is float32; size is a multiple of 16."""

    def silu_mul(self, gate_up: torch.Tensor, /) -> torch.Tensor:
        """From gates beside what they gate, [rows, 2 * size], to [rows, size]; size is a multiple of 32."""

    def rotary_and_store(
        self,
        projected: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        store: torch.Tensor,
        query_norm: torch.Tensor | None,
        key_norm: torch.Tensor | None,
        epsilon: float,
        /,
    ) -> torch.Tensor:
        """From queries, keys and values [rows, (query_heads + 2 * heads) * size] to the rotated queries
        [rows, query_heads, size]; rotated keys and the values go to `slots` [rows] of `store`
        [pages, page_tokens, heads, 2 * size]. `cos` and `sin` are [rows, size], size a multiple of 32 up to 256.
        The norms, where there are any, are the float32 weights [size] of RMS norms over heads, before the rotation."""

    def attend(
        self,
        queries: torch.Tensor,
        store: torch.Tensor,
        tables: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
        window: int,
        out: torch.Tensor,
        /,
    ) -> None:
        """Attention of rows that are each of a sequence of its own: queries [rows, query_heads, size] look at the last
        `window` keys up to their `positions` [rows], in the pages `tables` [rows, pages] of `store`. Writes to `out`,
        which is like `queries`. Size is 32, 64, 96 or 128."""


@cache
def load_kernels() -> Kernels | None:
    """The kernels, compiled if they are not kept from before. None, with a line in the log, where that fails."""
    try:
        return _load()
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as exc:
        lines = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else type(exc).__name__)
        logger.info("no native kernels, torch's operations stay in use: %s", reason)
        return None


def compiler() -> str | None:
    """The C++ compiler in use; None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def _load() -> Kernels:
    if sys.platform != "linux":
        raise RuntimeError("they are for Linux")
    library = _folder() / f"{_MODULE}-{_key()}.so"
    if not library.exists():
        _compile(library)
    spec = importlib.util.spec_from_file_location(_MODULE, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library} is not a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Kernels, module)


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "chatfleet" / "kernels"


def _key() -> str:
    """Another one for whatever would make another library."""
    digest = blake2b(_SOURCE.read_bytes(), digest_size=8)
    parts = (*_FLAGS, torch.__version__, sysconfig.get_config_var("SOABI"), platform.machine(), _cpu_flags())
    digest.update("\0".join(map(str, parts)).encode())
    return digest.hexdigest()


def _cpu_flags() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(library: Path) -> None:
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C++ compiler (install g++)")
    logger.info("compiling native kernels with %s", command)
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Path(torch.__file__).parent
    includes = (root / "include", root / "include/torch/csrc/api/include", Path(sysconfig.get_path("include")))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        system = [part for include in includes for part in ("-isystem", str(include))]
        _run(command, "-c", *_FLAGS, *system, str(_SOURCE), "-o", str(built))
        # Without -fopenmp: OpenMP's functions are those that torch has loaded, not those of a second runtime.
        _run(command, "-shared", str(built), "-o", str(linked), f"-L{root / 'lib'}", *_LIBRARIES)
        linked.replace(library)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
