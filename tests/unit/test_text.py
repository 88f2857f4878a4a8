"""Text that grows token by token."""

import math
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.chat.text import IncrementalText, Logprob, StopStrings, TextDelta, TextRules, TokenText, decode
from chatfleet.chat.tokenizer import ByteTokenizer, Tokenizer


class Vocabulary:
    """A tokenizer of arbitrary byte strings, some of them control tokens."""

    eos_token_ids = frozenset[int]()

    def __init__(self, tokens: list[bytes], special: set[int], *, strips_leading_space: bool = False) -> None:
        self.tokens = tokens
        self.special = special
        self.vocab_size = len(tokens)
        self.strips_leading_space = strips_leading_space
        self.longest_token_chars = 4

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special


fragments = st.one_of(
    st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=3),
    st.sampled_from([b"ab", b"a", b"b", b"\n\n", "é".encode()[:1], "é".encode()[1:], "🚢".encode()[:2]]),
)
vocabularies = st.builds(
    lambda tokens, special: Vocabulary(tokens, {i for i in special if i < len(tokens)}),
    st.lists(fragments, min_size=1, max_size=24),
    st.sets(st.integers(0, 23), max_size=3),
)
stop_lists = st.lists(st.one_of(st.text(min_size=1, max_size=4), st.sampled_from(["ab", "aab", "b", "\n"])), max_size=4)


def streamed(
    vocabulary: Tokenizer, batches: list[list[int]], stops: list[str], min_tokens: int = 0
) -> tuple[list[str], bool]:
    """The deltas of tokens that come in these batches, and whether a stop string ended them."""
    text = IncrementalText(vocabulary, TextRules(stops, min_tokens=min_tokens))
    deltas = []
    for batch in batches:
        delta = text.feed(batch)
        deltas.append(delta.text)
        if delta.stopped:
            return deltas, True
    last = text.finish()
    return [*deltas, last.text], last.stopped


@given(st.data())
def test_a_stream_concatenates_to_the_whole_however_it_is_split(data: st.DataObject) -> None:
    vocabulary = data.draw(vocabularies)
    token_ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1), max_size=40))
    stops, min_tokens = data.draw(stop_lists), data.draw(st.integers(0, 9))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(token_ids)), max_size=8)))
    bounds = [0, *cuts, len(token_ids)]
    batches = [token_ids[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    whole, stopped_whole = streamed(vocabulary, [token_ids], stops, min_tokens)
    single, stopped_single = streamed(vocabulary, [[token_id] for token_id in token_ids], stops, min_tokens)
    split, stopped_split = streamed(vocabulary, batches, stops, min_tokens)

    assert "".join(whole) == "".join(single) == "".join(split)
    assert stopped_whole == stopped_single == stopped_split
    for delta in [*whole, *single, *split]:
        delta.encode("utf-8")  # a lone surrogate would raise


@given(st.data())
def test_without_stops_the_text_is_the_bytes_of_the_ordinary_tokens(data: st.DataObject) -> None:
    vocabulary = data.draw(vocabularies)
    token_ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1), max_size=40))
    expected = b"".join(vocabulary.tokens[i] for i in token_ids if i not in vocabulary.special)
    assert decode(vocabulary, token_ids) == expected.decode("utf-8", "replace")


@given(text=st.text(alphabet="ab\n", max_size=40), stops=stop_lists, data=st.data())
def test_no_stop_string_is_ever_shown_and_the_first_complete_one_ends_the_text(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher = StopStrings(stops)
    shown, stopped, at = "", False, 0
    while at < len(text) and not stopped:
        size = data.draw(st.integers(1, 5))
        piece, stopped = matcher.feed(text[at : at + size])
        shown += piece
        at += size
    if not stopped:
        shown += matcher.flush()

    ends = [(found + len(stop), found) for stop in stops if (found := text.find(stop)) >= 0]
    assert stopped == bool(ends)
    assert shown == (text[: min(ends)[1]] if ends else text)
    assert not any(stop in shown for stop in stops)


def test_a_character_split_over_tokens_is_shown_once_it_is_whole() -> None:
    text = IncrementalText(ByteTokenizer())
    deltas = [text.feed([byte]).text for byte in "a🚢".encode()]
    assert deltas == ["a", "", "", "", "🚢"]


def test_an_unfinished_character_becomes_a_replacement_character_at_the_end() -> None:
    text = IncrementalText(ByteTokenizer())
    assert text.feed(list("a🚢".encode()[:3])).text == "a"
    assert text.finish().text == "�"


def test_what_may_begin_a_stop_string_is_held_back_and_shown_when_it_does_not() -> None:
    text = IncrementalText(ByteTokenizer(), TextRules(["END"]))
    assert text.feed(list(b"the E")).text == "the "
    assert text.feed(list(b"N")).text == ""
    assert text.feed(list(b"x")).text == "ENx"


def test_control_tokens_never_show() -> None:
    assert decode(ByteTokenizer(), [256, *b"hi", 257]) == "hi"


def test_log_probabilities_come_with_the_text_they_belong_to_and_stop_with_it() -> None:
    text = IncrementalText(ByteTokenizer(), TextRules(["!!"]))
    first = text.feed(list(b"a!"), [Logprob(-0.1), Logprob(-0.2)])
    assert (first.text, [token.bytes for token in first.tokens]) == ("a", [b"a"])
    second = text.feed(list(b"b"), [Logprob(-0.3)])
    assert (second.text, [token.bytes for token in second.tokens]) == ("!b", [b"!", b"b"])
    last = text.feed(list(b"!!"), [Logprob(-0.4), Logprob(-0.5)])
    assert (last.text, last.tokens, last.stopped) == ("", [], True)


@given(st.data())
def test_logged_tokens_spell_the_text(data: st.DataObject) -> None:
    """Offsets are where each token begins in the text, and tokens that show join to the text's bytes."""
    vocabulary = data.draw(vocabularies)
    token_ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1), max_size=30))
    text = IncrementalText(vocabulary)
    delta = text.feed(token_ids, [Logprob(-1.0)] * len(token_ids))
    end = text.finish()
    tokens = delta.tokens + end.tokens
    shown = delta.text + end.text
    assert b"".join(token.bytes for token in tokens).decode("utf-8", "replace") == shown
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
    assert all(token.offset <= len(shown) for token in tokens)
    for token in tokens:
        with suppress(UnicodeDecodeError):
            assert shown.startswith(token.bytes.decode(), token.offset)


def test_a_sentencepiece_text_loses_its_first_space_only() -> None:
    vocabulary = Vocabulary([b" hello", b" world"], set(), strips_leading_space=True)
    assert decode(vocabulary, [0, 1]) == "hello world"


def test_a_stop_string_that_ends_within_the_first_tokens_is_none() -> None:
    tokenizer = ByteTokenizer()

    def ended(said: str, stops: list[str], min_tokens: int) -> str:
        deltas, stopped = streamed(tokenizer, [[ord(char)] for char in said], stops, min_tokens)
        assert stopped
        return "".join(deltas)

    assert ended("ab-ab", ["ab"], 0) == ""
    assert ended("ab-ab", ["ab"], 2) == "ab-"
    assert ended("ab-ab", ["ab"], 1) == ""  # it ends behind them
    assert ended("abc", ["b", "abc"], 2) == ""
    assert ended("abcb", ["b", "abd"], 2) == "abc"


def test_a_token_stands_behind_the_character_that_it_breaks_off() -> None:
    text = IncrementalText(ByteTokenizer())
    delta = text.feed(list("🚢".encode()[:3] + b"a"), [Logprob(0.0)] * 4)
    assert (delta.text, [token.offset for token in delta.tokens]) == ("�a", [0, 0, 0, 1])


def test_stop_strings_are_searched_over_every_seam() -> None:
    for cut in range(1, len("one STOP two")):
        matcher = StopStrings(["STOP"])
        first, stopped = matcher.feed("one STOP two"[:cut])
        second = "" if stopped else matcher.feed("one STOP two"[cut:])[0]
        assert re.fullmatch("one ", first + second)


def told(deltas: list[TextDelta]) -> tuple[str, list[TokenText], bool]:
    return (
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        deltas[-1].stopped,
    )


def fed(
    text: IncrementalText, token_ids: list[int], logprobs: list[Logprob] | None, *, to_the_end: bool
) -> list[TextDelta]:
    """The deltas of tokens one by one, up to a stop string."""
    deltas = [TextDelta()]
    for position, token_id in enumerate(token_ids):
        deltas.append(text.feed([token_id], None if logprobs is None else [logprobs[position]]))
        if deltas[-1].stopped:
            return deltas
    return [*deltas, text.finish()] if to_the_end else deltas


@given(st.data())
def test_a_text_that_is_replayed_goes_on_where_it_was(data: st.DataObject) -> None:
    """Cut anywhere: what was shown before and what is shown after a replay elsewhere are the whole."""
    vocabulary = data.draw(vocabularies)
    vocabulary.strips_leading_space = data.draw(st.booleans())
    token_ids = data.draw(st.lists(st.integers(0, vocabulary.vocab_size - 1), max_size=30))
    rules = TextRules(data.draw(stop_lists), min_tokens=data.draw(st.integers(0, 9)))
    logprobs = [Logprob(-position / 7, [(0, -1.0)]) for position in range(len(token_ids))]
    if data.draw(st.booleans()):
        logprobs = None  # type: ignore[assignment]
    cut = data.draw(st.integers(0, len(token_ids)))
    whole = told(fed(IncrementalText(vocabulary, rules), token_ids, logprobs, to_the_end=True))

    first = IncrementalText(vocabulary, rules)
    before = fed(first, token_ids[:cut], logprobs and logprobs[:cut], to_the_end=False)
    second = IncrementalText(vocabulary, rules)
    held = [Logprob(token.logprob, token.top) for token in first.held_tokens()]
    stopped = second.replay(token_ids[:cut], [] if before[-1].stopped else held)
    assert stopped == before[-1].stopped
    after = [] if stopped else fed(second, token_ids[cut:], logprobs and logprobs[cut:], to_the_end=True)
    assert told(before + after) == whole


def test_more_log_probabilities_than_tokens_cannot_be_held_back() -> None:
    with pytest.raises(ValueError, match="more log probabilities"):
        IncrementalText(ByteTokenizer()).replay([256, 97], [Logprob(-math.inf)] * 2)


class Halves(ByteTokenizer):
    """Byte tokens, and one that ends inside of a character: a space and half an emoji."""

    def token_bytes(self, token_id: int) -> bytes:
        return b" \xf0\x9f" if token_id == 300 else super().token_bytes(token_id)


def test_where_grammars_go_on_tokens_of_an_unfinished_character_are_not_held() -> None:
    text = IncrementalText(ByteTokenizer(), TextRules(["ab!"], by_character=True))
    control, half = 256, "é".encode()[0]
    text.feed([97, 98, half, control], [Logprob(0.0)] * 4)
    assert text.unfinished_tokens == 2 and [token.bytes for token in text.held_tokens()] == [b"a", b"b"]


def test_where_grammars_go_on_a_token_shows_when_its_last_character_is_whole() -> None:
    text = IncrementalText(Halves(), TextRules(by_character=True))
    assert text.feed([97]).text == "a" and text.unfinished_tokens == 0
    assert text.feed([300]).text == "" and text.unfinished_tokens == 1
    assert text.feed([0x9A]).text == "" and text.unfinished_tokens == 2
    assert text.feed([0xA2]).text == " 🚢" and text.unfinished_tokens == 0
    text.feed([300])
    assert text.finish().text == " �"
