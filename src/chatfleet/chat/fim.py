"""Filling in the middle: how code models are asked for the text between two others.

The method is that of Bavarian et al. 2022 (arXiv:2207.14255); the tokens and their order are those of each family's
model card, and for CodeLlama and Codestral those of their makers' reference tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chatfleet.chat.tokenizer import Tokenizer

_MARK: Final = "☺"


@dataclass(frozen=True, slots=True)
class _Family:
    """The tokens of one family as its vocabulary writes them. Without `middle` the suffix comes first, and what
    follows the prefix is the answer. `ends` are what the model may write behind the answer."""

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()


_FAMILIES: Final = (
    # Qwen Coder, CodeGemma, newer Granite
    _Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|endoftext|>"),
    ),
    # StarCoder, older Granite
    _Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    # CodeLlama
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    # DeepSeek-Coder
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # Codestral
    _Family("[PREFIX]", "[SUFFIX]", None),
)


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """What one model needs for it. `stop_token_ids` end the middle, beside the model's own."""

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    stop_token_ids: frozenset[int]

    def prompt(self, bos: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The prompt, of token ids without special ones; `bos` are those that every text begins with."""
        if self.middle_id is None:
            return [*bos, self.suffix_id, *suffix, self.prefix_id, *prefix]
        return [*bos, self.prefix_id, *prefix, self.suffix_id, *suffix, self.middle_id]


def fill_in_the_middle(tokenizer: Tokenizer) -> FillInTheMiddle | None:
    """How the model of this tokenizer is asked; None where its vocabulary has no tokens for it."""
    for family in _FAMILIES:
        prefix_id, suffix_id = tokenizer.token_id(family.prefix), tokenizer.token_id(family.suffix)
        middle_id = None if family.middle is None else tokenizer.token_id(family.middle)
        if prefix_id is None or suffix_id is None or (family.middle is not None and middle_id is None):
            continue
        ends = (prefix_id, suffix_id, middle_id, *map(tokenizer.token_id, family.ends))
        return FillInTheMiddle(prefix_id, suffix_id, middle_id, frozenset(i for i in ends if i is not None))
    return None


def suffix_mark(tokenizer: Tokenizer) -> tuple[str, int]:
    """What to put before a suffix for encoding it, and how many tokens that is: a tokenizer that puts a space before
    every text puts it there, and not into the suffix."""
    mark = _MARK if tokenizer.strips_leading_space else ""
    return mark, len(tokenizer.encode(mark, add_special_tokens=False))
