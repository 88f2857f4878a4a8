"""What ChatFleet's gateway costs, beside nginx and other gateways, in one run on one machine.

All stand before the same mock backend (C), pinned to one core; the mock and the load generator (C) are on another.
The targets take turns within each repetition, so that whatever else the machine does falls on all of them. Each
request carries an API key, which ChatFleet and LiteLLM check. CPU seconds are what noise moves least: compare these.

It needs Linux, two cores, gcc, and nginx as the baseline. It starts everything on free ports, and ends it.

    python benchmarks/gateway/compare.py
    python benchmarks/gateway/compare.py --reps 9 --only ns32,paced --peers nginx,litellm --venv /tmp/litellm
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from machine import CannotRun, Cores, choose_cores, compile_c, cpu_model, raise_open_files, usage
from options import at_least_one, run_to_the_end, some_of
from processes import get_json
from report import Comparison, Round
from targets import CLIENT_HEADERS, PEERS, Place, Target, chatfleet, installed_peers, mock_backend, peer_command
from workloads import WORKLOADS, Workload, quick

HERE: Final = Path(__file__).resolve().parent
SECONDS, QUICK_SECONDS, WARM_UP_S = 1.0, 0.2, 0.3
_QUIET_S, _QUIET_CPU_S, _QUIET_PATIENCE_S = 0.2, 0.02, 30.0


class Bench:
    """The load generator on its core, and the targets that it is set upon."""

    def __init__(self, load: Path, backend_port: int, cores: Cores, targets: Sequence[Target], folder: Path) -> None:
        self._load = load
        self._backend_port = backend_port
        self._cores = cores
        self._targets = targets
        self._folder = folder

    def measure(self, workload: Workload, target: Target, seconds: float) -> Round:
        """Raises CannotRun when the target has ended, or the load generator fails."""
        get_json(self._backend_port, workload.control())
        bodies = self._folder / "bodies"
        bodies.write_text(workload.bodies() + "\n")
        headers = [argument for name, value in CLIENT_HEADERS.items() for argument in ("-H", f"{name}: {value}")]
        before = usage([target.process.pid])
        loaded = subprocess.run(
            [self._load, "-p", str(target.port), *headers, *workload.load_arguments(seconds, bodies)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        after = usage([target.process.pid])
        if loaded.returncode != 0:
            raise CannotRun(f"The load generator failed at {target.name}: {loaded.stderr}")
        target.process.require_alive()
        self._until_quiet()
        return Round(workload.name, target.name, after.cpu_s - before.cpu_s, after.rss_mb, json.loads(loaded.stdout))

    def _until_quiet(self) -> None:
        """What a target does after its load has gone must not fall on the next one; a target that is never quiet is
        waited for half a minute."""
        deadline = time.monotonic() + _QUIET_PATIENCE_S
        pids = [target.process.pid for target in self._targets]
        cpu_s = usage(pids).cpu_s
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            before, cpu_s = cpu_s, usage(pids).cpu_s
            if cpu_s - before <= _QUIET_CPU_S and get_json(self._backend_port, "/control") == {"streams": 0}:
                return


def run(
    bench: Bench, workloads: Sequence[Workload], targets: Sequence[Target], reps: int, seconds: float
) -> Iterator[Round]:
    """Every round as it is made, with a line about it on standard error."""
    turns = [
        (workload, repetition)
        for workload in workloads
        for repetition in range(min(reps, workload.max_repetitions or reps))
    ]
    total_s = len(targets) * (
        sum(workload.expected_s(seconds) + _QUIET_S for workload, _ in turns) + WARM_UP_S * len(workloads)
    )
    _say(f"{len(turns) * len(targets)} rounds, at least {total_s / 60:.1f} minutes")
    count = 0
    for workload, repetition in turns:
        if repetition == 0:
            for target in targets:
                bench.measure(workload.warm_up(), target, min(WARM_UP_S, seconds))
        for target in targets if repetition % 2 == 0 else reversed(targets):
            one = bench.measure(workload, target, seconds)
            count += 1
            _say(f"{count}/{len(turns) * len(targets)} {workload.name}, {target.name}: {one.summary()}")
            yield one


def compare(arguments: argparse.Namespace) -> None:
    """Start everything, measure, end everything, print. Raises CannotRun."""
    workloads = [quick(one) if arguments.quick else one for one in WORKLOADS if one.name in arguments.only]
    seconds = QUICK_SECONDS if arguments.quick else SECONDS
    bins = [environment / "bin" for environment in arguments.venv]
    peers = installed_peers(bins) if arguments.peers is None else arguments.peers
    for name in peers:
        peer_command(name, bins)  # before anything is started
    raise_open_files()
    cores = choose_cores(arguments.processes)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatfleet-bench-")))
        load, mock = (compile_c(HERE / name, folder) for name in ("load.c", "mock_backend.c"))
        os.sched_setaffinity(0, {cores.load})  # and so the load generator is
        backend_port = stack.enter_context(mock_backend(mock, cores, folder))
        place = Place(backend_port, cores, arguments.processes, folder, tuple(bins))
        targets: list[Target] = []
        for start in (chatfleet, *(PEERS[name] for name in peers)):
            targets.append(stack.enter_context(start(place)))
            _say(f"{targets[-1].name} {targets[-1].version} is ready")
        about = _about(targets, cores, arguments)
        bench = Bench(load, backend_port, cores, targets, folder)
        rounds = list(run(bench, workloads, targets, arguments.reps, seconds))
    comparison = Comparison(workloads, rounds)
    print(f"{_in_words(about)}\n\n{comparison.markdown()}")
    if arguments.json:
        arguments.json.write_text(json.dumps(comparison.to_json(about), indent=1))


def _about(targets: Sequence[Target], cores: Cores, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_of_gateways": list(cores.gateways),
        "processes": arguments.processes,
        "repetitions": arguments.reps,
        "quick": arguments.quick,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {target.name: target.version for target in targets},
    }


def _in_words(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    cores = f"{about['processes']} process(es) each on core(s) {', '.join(map(str, about['cores_of_gateways']))}"
    quick = "; QUICK: no figures to go by" if about["quick"] else ""
    return (
        f"{about['date']}, {about['cores']} cores of {about['cpu']}, Linux {about['kernel']}, "
        f"Python {about['python']}; {versions}; {cores}; medians of {about['repetitions']}{quick}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _peer_names(text: str) -> list[str]:
    return [] if text == "none" else some_of([*PEERS])(text)


def main() -> None:
    workload_names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=at_least_one, default=5, help="repetitions of each test (default: 5)")
    parser.add_argument(
        "--only", type=some_of(workload_names), default=workload_names, help=f"some of {','.join(workload_names)}"
    )
    parser.add_argument(
        "--peers", type=_peer_names, help=f"some of {','.join(PEERS)}, or none (default: nginx, and what is installed)"
    )
    parser.add_argument(
        "--venv", type=Path, action="append", default=[], help="environment that holds a peer; repeatable"
    )
    parser.add_argument("--processes", type=at_least_one, default=1, help="of each gateway (default: 1)")
    parser.add_argument("--json", type=Path, help="write the medians and every round here")
    parser.add_argument("--quick", action="store_true", help="a fraction of a second each, to see that it works")
    arguments = parser.parse_args()
    run_to_the_end(compare, arguments)


if __name__ == "__main__":
    main()
