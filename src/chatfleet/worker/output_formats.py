"""How the served model writes tool calls and reasoning: as the settings say, or found from its chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from chatfleet.chat.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ReasoningFormat,
    ToolFormat,
    find_reasoning_format,
    find_tool_format,
)
from chatfleet.chat.tokenizer import Tokenizer
from chatfleet.core.errors import ConfigurationError

_AUTO: Final = "auto"
_NONE: Final = "none"

Format = TypeVar("Format", ToolFormat, ReasoningFormat)


@dataclass(frozen=True, slots=True)
class OutputFormats:
    """None where the model has no such format. `parses_tools` is False where calls are to stay text."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    parses_tools: bool = True

    def visible_token_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The control tokens that the formats are written with."""
        texts = {text for part in (self.tools, self.reasoning) if part is not None for text in part.visible}
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return frozenset(ids[0] for ids in encoded if len(ids) == 1 and tokenizer.is_special(ids[0]))


def choose_formats(tool_parser: str, reasoning_parser: str, template: str | None) -> OutputFormats:
    """Raises ConfigurationError for a name that is none."""
    found_tools = find_tool_format(template) if template else None
    found_reasoning = find_reasoning_format(template) if template else None
    return OutputFormats(
        _chosen(tool_parser, TOOL_FORMATS, found_tools, "--tool-parser"),
        _chosen(reasoning_parser, REASONING_FORMATS, found_reasoning, "--reasoning-parser"),
        parses_tools=tool_parser != _NONE,
    )


def _chosen(name: str, known: Mapping[str, Format], found: Format | None, flag: str) -> Format | None:
    if name == _AUTO:
        return found
    if name == _NONE:
        return None
    if name not in known:
        raise ConfigurationError(f"{flag} {name} is none of {', '.join(sorted(known))}, {_AUTO} and {_NONE}.")
    return known[name]


def grammar_bytes(tokenizer: Tokenizer, visible: frozenset[int]) -> list[bytes]:
    """What each token is to a grammar: its bytes, none for control tokens but those of the formats."""
    return [
        b"" if tokenizer.is_special(token_id) and token_id not in visible else tokenizer.token_bytes(token_id)
        for token_id in range(tokenizer.vocab_size)
    ]
