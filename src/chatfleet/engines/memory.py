"""How much memory there is, and how much of it the KV cache gets."""

from dataclasses import dataclass
from pathlib import Path

KV_FRACTION = 0.4
"""Of what is free once the weights are in. The pool's pages are touched as they fill (0.4B model: 2000 blocks
of 393 kB cost nothing at load), so several workers on a machine can overlap; the rest is for the embedding
graph, activations and everybody else."""

WEIGHTS_FACTOR = 3.7
"""Resident bytes per byte of an F16 model once compiled for a CPU: 2.81 GB for 0.774 GB, measured with
OpenVINO 2026.4 (the file's F16, an F32 copy and oneDNN's packed BF16). Quantised weights stay as they are,
so for them this is too careful."""

_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class KVShape:
    """What one token's keys and values are made of."""

    layers: int
    kv_heads: int
    head_size: int

    def bytes_per_token(self, element_bytes: int) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes


def kv_blocks(
    *,
    bytes_per_block: int,
    block_tokens: int,
    context_length: int,
    max_concurrency: int,
    free_bytes: int,
    kv_cache_gb: float | None,
    fraction: float = KV_FRACTION,
) -> int:
    """The size of the KV pool in blocks of `block_tokens` tokens.

    `kv_cache_gb` (GB of 10**9 bytes) where the user gave one, else `fraction` of `free_bytes`; never more
    than `max_concurrency` requests of a whole context can fill, and at least one block.
    """
    budget = kv_cache_gb * 1e9 if kv_cache_gb is not None else free_bytes * fraction
    useful = max_concurrency * -(-context_length // block_tokens)
    return max(1, min(int(budget) // bytes_per_block, useful))


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process can still take: the least of the machine's and of its control groups'.

    Read from /proc/meminfo and from cgroup v1 or v2 files under `root`; a system without them counts as
    having 8 GB. Pages of the page cache that the kernel would give back count as free in both.
    """
    return min(_machine_available(root), *_cgroup_available(root), _UNLIMITED)


def _machine_available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 10**9
    meminfo = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return meminfo.get("MemAvailable", meminfo.get("MemFree", 8 * 10**9))


def _cgroup_available(root: Path) -> list[int]:
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Every ancestor's limit holds too. In a container the path may be the host's: then only the root is there.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                found += _group_available(folder, *names)
    return found


def _group_available(folder: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> list[int]:
    try:
        limit, usage = int((folder / limit_name).read_text()), int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or a limit of "max"
        return []
    return [max(0, limit - usage + int(stat.get(reclaimable_name, 0)))]
