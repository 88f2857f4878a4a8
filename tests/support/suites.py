"""Which cases of a parametrised test are in which suite."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick(count: int, cases: Iterable[Any]) -> list[Any]:
    """All cases, of which only the first `count` are in the quick suite."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=pytest.mark.long if n >= count else ()) for n, value in enumerate(values)]
