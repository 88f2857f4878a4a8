"""What the conformance suite found: every case beside every engine, and what an engine refused, in its own words."""

from collections.abc import Iterable, Iterator
from typing import Any

RECORD = "conformance"
"""The user property of a report: [target, file, case, refusals]."""

_PASSED, _REFUSED, _FAILED = "passed", "refused", "FAILED"


def conformance_lines(reports: Iterable[Any]) -> Iterator[str]:
    """A table for the terminal; nothing where no such case ran. A case is said to have `passed`, to be `refused` by
    name, as it must where an engine does not declare what it needs (`2/5 refused`: with two of five settings), to have
    `FAILED`, or why it did not run."""
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    refusals: dict[str, dict[str, None]] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):  # a module that cannot be collected has none
            if name != RECORD:
                continue
            target, file, case, refused = value
            refusals.setdefault(target, {}).update(dict.fromkeys(refused))
            outcome = _outcome(report, refused)
            if outcome is not None:
                cells.setdefault((file, case), {}).setdefault(target, []).append(outcome)
    if not cells:
        return
    targets = list(refusals)
    rows = {place: {target: _summary(outcomes) for target, outcomes in row.items()} for place, row in cells.items()}
    width = max(len(RECORD), *(len(case) for _, case in rows)) + 2
    columns = [max(len(target), *(len(row.get(target, "")) for row in rows.values())) + 2 for target in targets]
    yield ""
    yield RECORD.ljust(width) + "".join(t.ljust(size) for t, size in zip(targets, columns, strict=True))
    for (_, case), row in sorted(rows.items()):
        line = "".join(row.get(t, "-").ljust(size) for t, size in zip(targets, columns, strict=True))
        yield (case.ljust(width) + line).rstrip()
    for target, messages in refusals.items():
        for message in sorted(messages):
            yield f"{target} refused: {message}"


def _outcome(report: Any, refused: list[str]) -> str | None:
    if report.failed:
        return _FAILED
    if report.skipped:
        return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if report.when != "call":
        return None
    return _REFUSED if refused else _PASSED


def _summary(outcomes: list[str]) -> str:
    """Of a case that ran with several settings."""
    different = set(outcomes)
    if len(different) == 1:
        return outcomes[0]
    if different == {_PASSED, _REFUSED}:
        return f"{outcomes.count(_REFUSED)}/{len(outcomes)} {_REFUSED}"
    return _FAILED if _FAILED in different else ", ".join(sorted(different))
