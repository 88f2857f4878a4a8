"""The tokenizer: byte-level BPE in which every merge has its Title-case and UPPER-case twins.

Merges are learnt on lower-cased text; each is followed at once by its twins, so that `hello`, `Hello` and `HELLO`
are cut at the same places and upper-casing is a map from token to token that a small model can learn.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# The cut before BPE of the Qwen2 tokenizer, which loaders know as `tokenizer.ggml.pre = qwen2`: digits stand alone.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)

_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_SPACE = "Ġ"  # how byte-level BPE writes a space

Merge = tuple[str, str]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order (specials last) and merges in rank order, in byte-level characters."""

    tokens: list[str]
    merges: list[Merge]

    @property
    def special_ids(self) -> dict[str, int]:
        return {name: self.tokens.index(name) for name in SPECIALS}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"tokens": self.tokens, "merges": self.merges}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(stored["tokens"], [(left, right) for left, right in stored["merges"]])


def _title(piece: str) -> str:
    head = piece[:2] if piece.startswith(_SPACE) else piece[:1]
    return head.translate(_UPPER) + piece[len(head) :]


def _twins(left: str, right: str) -> list[Merge]:
    title = (left, _title(right)) if left == _SPACE else (_title(left), right)
    upper = (left.translate(_UPPER), right.translate(_UPPER))
    return list(dict.fromkeys([(left, right), title, upper]))


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn(texts: Iterable[str], merge_count: int) -> Vocabulary:
    """Learns `merge_count` lower-case merges and mirrors them; about 3x as many tokens result."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merge_count, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text.translate(_LOWER) for text in texts), trainer)
    learnt: list[Merge] = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
    merges: dict[Merge, None] = {}
    for left, right in learnt:
        merges.update(dict.fromkeys(_twins(left, right)))
    tokens = dict.fromkeys(alphabet)
    tokens.update(dict.fromkeys(left + right for left, right in merges))
    return Vocabulary([*tokens, *SPECIALS], list(merges))


def build(vocabulary: Vocabulary) -> Tokenizer:
    """The runnable tokenizer, equal to what loaders make of the GGUF's metadata (no normalizer, unlike Qwen2's own)."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


def case_groups(vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """Per token: the id of the group of its case twins, and its case (0 lower or none, 1 Title, 2 UPPER)."""
    groups: dict[str, int] = {}
    group_ids, case_ids = [], []
    for token in vocabulary.tokens:
        lower = token if token in SPECIALS else token.translate(_LOWER)
        group_ids.append(groups.setdefault(lower, len(groups)))
        is_title = token == _title(lower)
        case_ids.append(0 if token == lower else 1 if is_title else 2)
    return group_ids, case_ids
