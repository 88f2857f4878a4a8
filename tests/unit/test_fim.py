"""Filling in the middle: found in a vocabulary, and asked for as each family's makers do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from chatfleet.chat.fim import fill_in_the_middle, suffix_mark
from chatfleet.chat.text import IncrementalText, TextRules, decode
from chatfleet.chat.tokenizer import ByteTokenizer, HuggingFaceTokenizer


def vocabulary(*control: str) -> HuggingFaceTokenizer:
    """Single bytes, and control tokens from id 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    if "<s>" in control:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return HuggingFaceTokenizer(tokenizer, eos_token_ids=[])


@pytest.mark.parametrize(
    ("control", "written"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>a<fim_suffix>b<fim_middle>"),
        (("<s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), "<s>▁<PRE>a▁<SUF>b▁<MID>"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
        (("<s>", "[PREFIX]", "[SUFFIX]"), "<s>[SUFFIX]b[PREFIX]a"),
    ],
)
def test_each_family_is_asked_with_its_own_tokens(control: tuple[str, ...], written: str) -> None:
    tokenizer = vocabulary(*control)
    middle = fill_in_the_middle(tokenizer)
    assert middle is not None
    bos, prefix, suffix = (tokenizer.encode(text, add_special_tokens=not text) for text in ("", "a", "b"))
    prompt = middle.prompt(bos, prefix, suffix)
    assert b"".join(map(tokenizer.token_bytes, prompt)).decode() == written
    assert middle.stop_token_ids == {tokenizer.token_id(token) for token in control if token != "<s>"}


def test_what_the_family_ends_a_middle_with_stops_it() -> None:
    tokenizer = vocabulary("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<x>")
    middle = fill_in_the_middle(tokenizer)
    assert middle is not None
    assert middle.stop_token_ids == set(range(256, 261))


@pytest.mark.parametrize("control", [(), ("<|fim_prefix|>", "<|fim_suffix|>"), ("[PREFIX]",)])
def test_a_vocabulary_without_all_of_them_has_none(control: tuple[str, ...]) -> None:
    assert fill_in_the_middle(vocabulary(*control)) is None


def test_the_simulated_engine_has_none() -> None:
    assert fill_in_the_middle(ByteTokenizer()) is None


def sentencepiece() -> HuggingFaceTokenizer:
    """Puts a space before every text, as Llama's does."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "▁a", "ab"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "a"), ("a", "b")], byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HuggingFaceTokenizer(tokenizer, eos_token_ids=[])


@given(st.text(st.sampled_from(" abcd\né☺"), min_size=1, max_size=12))
def test_a_suffix_has_no_space_before_it_that_was_not_there(suffix: str) -> None:
    for tokenizer in (sentencepiece(), vocabulary(), ByteTokenizer()):
        mark, mark_tokens = suffix_mark(tokenizer)
        token_ids = tokenizer.encode(mark + suffix, add_special_tokens=False)[mark_tokens:]
        assert b"".join(map(tokenizer.token_bytes, token_ids)).decode() == suffix


def test_the_space_between_a_prompt_and_its_completion_shows() -> None:
    tokenizer = sentencepiece()
    token_ids = tokenizer.encode("a b", add_special_tokens=False)
    assert decode(tokenizer, token_ids) == "a b"
    assert IncrementalText(tokenizer, TextRules(goes_on=True)).feed(token_ids).text == " a b"
