"""All checks, by the modules that have them."""

from collections.abc import Iterable, Sequence
from typing import Final

from chatfleet.core.errors import ConfigurationError
from chatfleet.doctor import (
    checks_chat,
    checks_completions,
    checks_embeddings,
    checks_errors,
    checks_extensions,
    checks_models,
    checks_reasoning,
    checks_sampling,
    checks_store,
    checks_streams,
    checks_structure,
    checks_tools,
)
from chatfleet.doctor.context import Check

_MODULES: Final = (
    checks_models,
    checks_chat,
    checks_sampling,
    checks_streams,
    checks_errors,
    checks_tools,
    checks_structure,
    checks_reasoning,
    checks_completions,
    checks_embeddings,
    checks_store,
    checks_extensions,
)


def all_checks() -> list[Check]:
    return [check for module in _MODULES for check in module.collection.checks]


def chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these names and groups; all without any. Raises ConfigurationError for one that does not exist."""
    checks = all_checks()
    names = {check.name for check in checks} | {check.group for check in checks}
    for name in only:
        if name not in names:
            raise ConfigurationError(
                f"--only {name}: there is no such check or group. Groups: {_groups(checks)}. `chatfleet doctor --list` "
                "shows all checks."
            )
    return [check for check in checks if not only or check.name in only or check.group in only]


def _groups(checks: Iterable[Check]) -> str:
    return ", ".join(dict.fromkeys(check.group for check in checks))
