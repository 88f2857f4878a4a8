"""A script that stands in for optimum-intel, and conversions that are made by it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from chatfleet.worker.conversion import Conversions, Original
from chatfleet.worker.conversion_tools import ConversionTools
from chatfleet.worker.settings import WeightFormat

_SCRIPT = """#!{python}
import json, sys, time
from pathlib import Path
out = Path(sys.argv[-1])
with open({calls!r}, "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
{body}
"""
WRITE = '[(out / f"openvino_model.{end}").write_text("x") for end in ("xml", "bin")]'
"""What a conversion that goes well does."""

ORIGINAL = Original("org/m", "commit")


@dataclass(frozen=True, slots=True)
class ScriptTools(ConversionTools):
    """Tools whose interpreter is the script."""

    script: Path = Path()

    @property
    def is_made(self) -> bool:
        return True

    def python(self) -> Path:
        return self.script


def conversions(folder: Path, body: str = WRITE, weight_format: WeightFormat = "int8") -> Conversions:
    """Kept in `folder`/cache; the converter runs `body`, where `out` is the folder to fill."""
    script = folder / "converter"
    script.write_text(_SCRIPT.format(python=sys.executable, calls=str(folder / "calls"), body=body))
    script.chmod(0o755)
    return Conversions(folder / "cache", weight_format, ScriptTools(folder / "cache", "torch", script))


def calls(folder: Path) -> list[list[str]]:
    """The arguments of each run of the converter."""
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def converting_process(folder: Path, source: Path, body: str) -> subprocess.Popen[bytes]:
    """Another process that converts ORIGINAL."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from support.converter import ORIGINAL, conversions;"
        "conversions(Path(sys.argv[2]), sys.argv[4]).convert(ORIGINAL, Path(sys.argv[3]), '')"
    )
    tests = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", code, str(tests), str(folder), str(source), body])
