"""A chaos run by hand, to repeat one or to search for trouble.

python tests/chaos/run.py --seed 7 --seconds 60
python tests/chaos/run.py --engine openvino --runs 5
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.chaos import openvino_plan, run_chaos, simulated_plan  # noqa: E402


def main() -> int:
    """The exit status: 1 when a run had problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--engine", choices=("simulated", "openvino"), default="simulated")
    parser.add_argument("--runs", type=int, default=1, help="further ones have the next seeds")
    parser.add_argument("--folder", type=Path, help="where the logs stay")
    given = parser.parse_args()
    make_plan = simulated_plan if given.engine == "simulated" else openvino_plan
    plan = make_plan() if given.seconds is None else make_plan(given.seconds)
    failed = 0
    for seed in range(given.seed, given.seed + given.runs):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if given.folder is None else given.folder / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            report = run_chaos(plan, seed, folder)
        print(report, flush=True)
        failed += bool(report.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
