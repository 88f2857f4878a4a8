"""Grammars over a vocabulary: what may come next, ends, stop tokens, and what is refused."""

import pytest

from chatfleet.engines.base import RequestRefused
from chatfleet.engines.matching import Grammars, Matcher

TOKEN_BYTES = [*(bytes([byte]) for byte in range(256)), b"", b"ab", b"abc", b"a", b"\xff<end>", "é".encode()]
CONTROL = 256
VOCAB_SIZE = 300
"""More than there are texts of tokens: a model's matrices are padded."""


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKEN_BYTES, VOCAB_SIZE)


def begin(grammars: Grammars, text: str, *stop_token_ids: int) -> Matcher:
    return grammars.matcher(grammars.compile(text).result(), stop_token_ids)


def allowed(matcher: Matcher, *, may_stop: bool = True) -> set[int]:
    mask = int.from_bytes(matcher.allowed(may_stop=may_stop), "little")
    return {token_id for token_id in range(VOCAB_SIZE) if mask >> token_id & 1}


def written(*texts: bytes) -> set[int]:
    return {token_id for token_id, text in enumerate(TOKEN_BYTES) if text in texts}


def test_every_way_to_write_a_text_in_tokens_is_allowed(grammars: Grammars) -> None:
    matcher = begin(grammars, 'start: "abc"')
    assert allowed(matcher) == written(b"a", b"ab", b"abc") and len(allowed(matcher)) == 4
    matcher.advance(TOKEN_BYTES.index(b"ab"))
    assert allowed(matcher) == written(b"c")
    matcher.advance(ord("c"))
    assert matcher.is_finished and matcher.is_complete and matcher.fault is None


def test_characters_may_be_written_in_parts(grammars: Grammars) -> None:
    matcher = begin(grammars, 'start: "é"')
    assert allowed(matcher) == {0xC3, TOKEN_BYTES.index("é".encode())}
    matcher.advance(0xC3)
    assert allowed(matcher) == {0xA9} and not matcher.is_complete


def test_any_text_has_no_control_tokens_and_no_broken_characters(grammars: Grammars) -> None:
    free = allowed(begin(grammars, "start: /(.|\\n)*/"))
    assert free == {token_id for token_id in range(len(TOKEN_BYTES)) if token_id < 128 or 0xC2 <= token_id < 0xF5} | {
        token_id for token_id in range(257, len(TOKEN_BYTES)) if not TOKEN_BYTES[token_id].startswith(b"\xff")
    } - {CONTROL}


def test_stop_tokens_come_where_the_answer_may_end(grammars: Grammars) -> None:
    matcher = begin(grammars, "start: /[0-9]{2,3}/", CONTROL, VOCAB_SIZE - 1)
    digits = set(b"0123456789")
    assert allowed(matcher) == digits
    matcher.advance(ord("1"))
    matcher.advance(ord("2"))
    assert matcher.is_complete and not matcher.is_finished
    assert allowed(matcher) == digits | {CONTROL, VOCAB_SIZE - 1}
    assert allowed(matcher, may_stop=False) == digits


def test_a_stop_token_that_is_text_waits_unless_nothing_else_fits(grammars: Grammars) -> None:
    matcher = begin(grammars, "start: /[12]2/", ord("2"))
    assert allowed(matcher) == set(b"12")
    assert allowed(matcher, may_stop=False) == set(b"1")
    matcher.advance(ord("1"))
    assert allowed(matcher, may_stop=False) == set(b"2")


def test_answers_of_one_grammar_go_their_own_ways(grammars: Grammars) -> None:
    first, second = (begin(grammars, "start: /a+b|c/") for _ in range(2))
    first.advance(ord("a"))
    second.advance(ord("c"))
    assert allowed(first) == written(b"a", b"ab") | {ord("b")} and second.is_finished


def test_the_last_grammars_are_kept(grammars: Grammars) -> None:
    first = grammars.compile('start: "kept"')
    assert grammars.compile('start: "kept"') is first
    for number in range(40):
        grammars.compile(f'start: "other {number}"').result()
    assert grammars.compile('start: "kept"') is not first


@pytest.mark.parametrize("bad", ["start: (", "start: nothing", 'start: "a"' + " " * 500_000])
def test_what_cannot_be_compiled_is_refused(grammars: Grammars, bad: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        begin(grammars, bad)
    assert caught.value.fault.kind == "invalid" and caught.value.fault.param == "grammar"


def test_deeply_nested_rules_do_not_bring_the_process_down(grammars: Grammars) -> None:
    rules = "\n".join(f'r{number}: "a" r{number + 1} |' for number in range(20_000))
    matcher = begin(grammars, f'start: r0\n{rules}\nr20000: "z"\n')
    assert allowed(matcher) == written(b"a")


def test_an_answer_that_has_no_token_to_go_on_with_says_so() -> None:
    few = Grammars([b"a", b"\xe2"], 2)
    matcher = few.matcher(few.compile('start: "a€"').result(), ())
    matcher.advance(0)
    assert matcher.fault is None
    matcher.advance(1)
    assert matcher.fault is not None and "has no token" in matcher.fault.message


def test_a_grammar_that_takes_too_much_fails_its_answer(grammars: Grammars) -> None:
    matcher = begin(grammars, "start: " + " | ".join(f'"v{number}"' for number in range(3000)))
    while matcher.fault is None and not matcher.is_finished:
        matcher.advance(min(allowed(matcher)))
    assert matcher.fault is not None and "cannot go on" in matcher.fault.message
