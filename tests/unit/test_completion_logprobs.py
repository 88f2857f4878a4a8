"""Where the tokens of prompts and completions stand in their text, and which answer is the likeliest."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from chatfleet.chat.text import IncrementalText, Logprob, TextRules, TokenText, decode
from chatfleet.chat.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from chatfleet.engines.base import TokenLogprobs
from chatfleet.worker.completion_logprobs import (
    completion_logprobs,
    joined,
    mean_logprob,
    placed_behind,
    prompt_tokens,
    scored,
)

CORPUS = ["The quick brown fox jumps over the lazy dog. ", "Grüße, 世界! 🚢 12345 ", "don't stop\n\n  now"] * 50


def trained(*, trims: bool) -> HuggingFaceTokenizer:
    """Byte-level BPE that composes characters before it reads them, as Qwen's does. With `trims`, offsets leave out
    leading spaces, as GPT-2's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return HuggingFaceTokenizer(tokenizer, eos_token_ids=[0])


@pytest.fixture(scope="module", params=[False, True])
def bpe(request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    return trained(trims=request.param)


texts = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["Grüße ", " the fox", "e\u0301", "🚢", "<|end|>", "世界", " ", "\u212b", "A\u030a"]),
        max_size=12,
    ).map("".join),
)


@given(text=texts)
def test_a_prompts_tokens_stand_where_their_text_begins(text: str, bpe: HuggingFaceTokenizer) -> None:
    token_ids = bpe.encode(text, add_special_tokens=True)
    tokens = prompt_tokens(bpe, text, token_ids)
    assert [token.token_id for token in tokens] == token_ids
    offsets = [token.offset for token in tokens]
    assert offsets == sorted(offsets) and all(0 <= offset < len(text) for offset in offsets)
    for token, start, end in zip(tokens, offsets, [*offsets, len(text)][1:], strict=True):
        of_text, of_token = text[start:end], token.bytes.decode("utf-8", "ignore")
        assert not of_token or unicodedata.normalize("NFC", of_text).startswith(of_token), (of_text, of_token)


@given(token_ids=st.lists(st.integers(0, 399), max_size=40), shows_control=st.booleans())
def test_so_do_those_of_a_prompt_of_any_token_ids(
    token_ids: list[int], shows_control: bool, bpe: HuggingFaceTokenizer
) -> None:
    text = decode(bpe, token_ids, shows_control=shows_control)
    tokens = prompt_tokens(bpe, text, token_ids, shows_control=shows_control)
    assert len(tokens) == len(token_ids)
    grown = IncrementalText(bpe, TextRules(shows_control=shows_control))
    said = grown.feed(token_ids, [Logprob(0.0)] * len(token_ids)).tokens + grown.finish().tokens
    shown = [token for token in tokens if shows_control or not bpe.is_special(token.token_id)]
    assert [token.offset for token in shown] == [token.offset for token in said]


@given(text=texts.filter(lambda text: "<|" not in text))
def test_bytes_stand_where_their_character_begins(text: str) -> None:
    tokens = prompt_tokens(ByteTokenizer(), text, list(text.encode()))
    assert [token.offset for token in tokens] == [at for at, char in enumerate(text) for _ in char.encode()]


def test_control_tokens_have_room_where_they_are_written_out_and_nowhere_else() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "▁a": 1, "b": 2}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    sentencepiece = HuggingFaceTokenizer(tokenizer, eos_token_ids=[])
    added, written = (prompt_tokens(sentencepiece, text, [3, 1, 2]) for text in ("ab", "<s>ab"))
    assert [(token.text, token.offset) for token in added] == [("<s>", 0), ("a", 0), ("b", 1)]
    assert [(token.text, token.offset) for token in written] == [("<s>", 0), ("a", 3), ("b", 4)]


def test_control_tokens_of_a_prompt_of_token_ids_are_written_out_on_request() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"▁": 0, "▁hi": 1}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    sentencepiece = HuggingFaceTokenizer(tokenizer, eos_token_ids=[])
    text = decode(sentencepiece, [2, 1], shows_control=True)
    shown = prompt_tokens(sentencepiece, text, [2, 1], shows_control=True)
    assert text == "<s> hi" and [(token.text, token.offset) for token in shown] == [("<s>", 0), (" hi", 3)]


def token(text: str, logprob: float, offset: int = 0) -> TokenText:
    return TokenText(1, text.encode(), offset, logprob, [(98, logprob)])


def test_the_first_token_of_a_prompt_has_no_log_probability() -> None:
    tokens = scored([token("a", math.nan), token("b", math.nan, 1)], [None, TokenLogprobs(98, -0.5, [(98, -0.5)])])
    lists = completion_logprobs(tokens, ByteTokenizer(), 1)
    assert lists.token_logprobs == [None, -0.5] and lists.top_logprobs == [None, {"b": -0.5}]
    assert lists.text_offset == [0, 1] and lists.tokens == ["a", "b"]


@given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=4), min_size=1, max_size=5), st.integers(0, 9))
def test_the_lists_of_deltas_join_to_those_of_the_whole(deltas: list[list[str]], echoed: int) -> None:
    said, at = [], 0
    for delta in deltas:
        said.append([])
        for text in delta:
            said[-1].append(token(text, -1.0, at))
            at += len(text)
    placed = [placed_behind(delta, echoed) for delta in said]
    parts = [completion_logprobs(delta, ByteTokenizer(), 1) for delta in placed]
    whole = completion_logprobs([entry for delta in placed for entry in delta], ByteTokenizer(), 1)
    assert joined(parts) == whole
    whole_text = " " * echoed + "".join(whole.tokens)
    for offset, text in zip(whole.text_offset, whole.tokens, strict=True):
        assert whole_text.startswith(text, offset)


def test_a_short_answer_is_not_better_for_being_short() -> None:
    long, short = [token("a", -0.2)] * 10, [token("a", -0.3)]
    assert mean_logprob(long) > mean_logprob(short) > mean_logprob([])
