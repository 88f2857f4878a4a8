"""What is printed for engines means what the grammar means. llguidance reads it here; OpenVINO's xgrammar in
tests/engines."""

from functools import cache
from random import Random

import llguidance
import pytest

from chatfleet.chat.grammar import (
    Grammar,
    from_ebnf,
    from_json_schema,
    from_regex,
    json_object,
    literal,
    matches,
    remaining,
    repeat,
    sequence,
    text_without,
    to_ebnf,
    to_lark,
)
from chatfleet.chat.grammar.factoring import Factoring, any_meet
from chatfleet.chat.grammar.nodes import Alternatives, walk
from support.schemas import random_schema
from support.sentences import random_sentence


class _Bytes:
    """A vocabulary of the 256 bytes and an end."""

    tokens = [*(bytes([byte]) for byte in range(256)), b""]
    special_token_ids = [256]
    eos_token_id = 256
    bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether llguidance takes the whole text."""
    matcher = llguidance.LLMatcher(_tokenizer(), to_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    written = list(text.encode())
    return matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting()


def calls(content: Grammar) -> Grammar:
    call = sequence(literal("<call>"), content, literal("</call>"))
    return sequence(text_without(["<call>"]), repeat(sequence(call, repeat(sequence(literal("\n"), call))), 0, 1))


NAMED = {
    "literal with quotes": (literal('a"\\/\n\x01f é1\U0001f600'), ['a"\\/\n\x01f é1\U0001f600'], ["a"]),
    "counted": (from_regex("(ab|c){2,70}", param=None), ["abc", "c" * 70], ["c", "c" * 71]),
    "several ways": (from_regex("(a|ab)(c|bc)+x?", param=None), ["abc", "abcbcx"], ["ab", "abx"]),
    "empty": (repeat(literal("x"), 0, 1), ["", "x"], ["xx"]),
    "recursive": (from_ebnf('root ::= "(" root ")" | "a"+ ("ab")?', param=None), ["((aab))", "aa"], ["((aa)", "ab)"]),
    "number then digit": (sequence(json_object(), literal("1")), ['{"a":12}1'], ['{"a":12}']),
    "call": (
        calls(json_object()),
        ["", "text <cal", 'so <call>{"a": [1,"<call>"]}</call>\n<call>{}</call>'],
        ["<call>", "<call>{}</call> x", "<call>{}"],
    ),
    "free text before anything": (sequence(text_without(["#"]), json_object()), ['abc{"a":1}'], ["abc", '#{"a":1}']),
}


@pytest.mark.parametrize("name", NAMED)
def test_llguidance_takes_what_the_grammar_has(name: str) -> None:
    grammar, fits, misfits = NAMED[name]
    for text in fits:
        assert matches(grammar, text) and accepts(grammar, text), text
        for cut in range(len(text) + 1):
            assert accepts(remaining(grammar, text[:cut]), text[cut:]), text[:cut]
    for text in misfits:
        assert not matches(grammar, text) and not accepts(grammar, text), text


ALIKE = {
    "integers": (from_json_schema({"type": "integer", "minimum": 58, "maximum": 2839}, param=None), ["58", "2839"]),
    "choices": (from_json_schema({"enum": ["あ", "い", "aあ", "red", "real"]}, param=None), ['"い"', '"real"']),
    "optional members": (
        from_json_schema({"type": "object", "properties": {"a": {}, "ab": {"type": "null"}, "b": {}}}, param=None),
        ["{}", '{"ab":null}', '{"a":[{}],"b":2}'],
    ),
    "repeated": (from_regex("(a|ab)*(abc|[é-ü]a|[ü-日]b)", param=None), ["aababc", "üa", "日b"]),
    "recursive": (from_ebnf('root ::= e | e "+" root\ne ::= "(" root ")" | "a"', param=None), ["(a+a)+a", "a"]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_no_alternatives_of_one_rule_begin_alike_in_ebnf(name: str) -> None:
    grammar, fits = ALIKE[name]
    printed = from_ebnf(to_ebnf(grammar), param=None)
    factoring = Factoring(printed)
    for body in (printed.root, *printed.rules.values()):
        for node in walk(body):
            if isinstance(node, Alternatives):
                assert not any_meet(map(factoring.beginning, node.options)), to_ebnf(grammar)
    for text in fits:
        assert matches(printed, text), text
        assert not matches(printed, text + "?")


@pytest.mark.parametrize("seeds", [range(2000, 2020)])
def test_ebnf_that_is_read_again_has_the_same_texts(seeds: range) -> None:
    for seed in seeds:
        grammar, random = from_json_schema(random_schema(seed), param=None), Random(seed)
        printed = from_ebnf(to_ebnf(grammar), param=None)
        for _ in range(3):
            text = random_sentence(grammar, random)
            cut = random.randint(0, len(text))
            changed = text[:cut] + random.choice('{}[],:"\\ 0a') + text[cut + 1 :]
            assert matches(printed, text), text
            assert matches(printed, changed) == matches(grammar, changed), changed


def check_schema(seed: int) -> None:
    grammar, random = from_json_schema(random_schema(seed), param=None), Random(seed)
    assert to_ebnf(grammar).startswith("root ::=") or "\nroot ::=" in to_ebnf(grammar)
    for _ in range(2):
        text = random_sentence(grammar, random)
        cut = random.randint(0, len(text))
        changed = text[:cut] + random.choice('{}[],:"\\ 0a') + text[cut + 1 :]
        assert accepts(grammar, text)
        assert accepts(remaining(grammar, text[:cut]), text[cut:])
        assert accepts(grammar, changed) == matches(grammar, changed), changed


@pytest.mark.parametrize("seeds", [range(25), range(1000, 1025)])
def test_llguidance_agrees_on_random_schemas(seeds: range) -> None:
    for seed in seeds:
        check_schema(seed)


@pytest.mark.long
def test_llguidance_agrees_on_500_random_schemas() -> None:
    for seed in range(500):
        check_schema(seed)
