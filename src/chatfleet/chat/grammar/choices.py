"""One of some texts."""

from collections.abc import Sequence

from chatfleet.chat.grammar import limits
from chatfleet.chat.grammar.nodes import Grammar, checked, choice, text, without_nul
from chatfleet.core.errors import InvalidRequest


def from_choices(choices: Sequence[str], *, param: str | None = None) -> Grammar:
    """Exactly one of the texts. Raises InvalidRequest where there are none, or too many."""
    if not choices:
        raise InvalidRequest("There is nothing to choose from: give at least one choice.", param=param)
    try:
        size = sum(len(option.encode()) for option in choices)
    except UnicodeEncodeError as exc:
        raise InvalidRequest("Half of a surrogate pair in a choice is no character.", param=param) from exc
    if len(choices) > limits.MAX_ENUM_VALUES or size > limits.MAX_SOURCE_BYTES:
        raise InvalidRequest(
            f"There are {len(choices)} choices of {size} bytes, of at most {limits.MAX_ENUM_VALUES} and "
            f"{limits.MAX_SOURCE_BYTES}.",
            param=param,
        )
    return without_nul(checked(Grammar(choice(text(option) for option in choices)), param=param), param=param)
