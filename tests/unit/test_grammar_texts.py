"""Grammars of regexes, choices, EBNF and structural tags, and how they are put together and read."""

import json
import re
from typing import Any

import pytest

from chatfleet.chat.grammar import (
    alternatives,
    from_choices,
    from_ebnf,
    from_json_schema,
    from_regex,
    from_structural_tag,
    is_complete,
    json_object,
    limits,
    literal,
    matches,
    remaining,
    repeat,
    sequence,
    text_without,
    to_ebnf,
)
from chatfleet.chat.grammar.budget import budget
from chatfleet.core.errors import InvalidRequest, UnsupportedParameter

TEXTS = ["", "a", "abc", "ab1", "foobarx", "foofoo", "bafoo", "a-b.12", "a.1", "q@x.de", "aé", "x\ny", "A]b", "2024-01"]


@pytest.mark.parametrize(
    "pattern",
    [
        r"a[^\d\s]+",
        r"(foo|ba?r){2,3}x*",
        r"(?:[a-z-]+)\.\d{2,}",
        r"\S+@\S+\.\w+",
        r"(?P<year>\d{4})-(0[1-9]|1[0-2])",
        r"^ab?c?$",
        r"a.*?c|",
        r"x\ny|A\]b|\x41\u005db",
        r"[A-C]?[\]b]+",
        r"\W|.{2}",
        r"a{2}|a{0,3}",
        "a{0000000001}bc",
    ],
)
def test_a_regex_matches_whole_texts_as_python_does(pattern: str) -> None:
    grammar = from_regex(pattern, param="regex")
    assert [text for text in TEXTS if matches(grammar, text)] == [t for t in TEXTS if re.fullmatch(pattern, t)]


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a(?=b)", "look-ahead"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back reference"),
        (r"\bfoo", r"`\b`"),
        ("(?i)a", "flags"),
        (r"\p{L}", "Unicode property"),
        ("a++", "possessive"),
        ("(a$)b", "`$` within a group"),
        ("a^b", "`^`"),
        ("a{,3}", "`{,n}`"),
        ("a\0b", "NUL"),
        (r"a\x00", "NUL"),
    ],
)
def test_a_regex_that_no_grammar_can_honour_is_refused_by_name(pattern: str, what: str) -> None:
    with pytest.raises(UnsupportedParameter, match=re.escape(what)):
        from_regex(pattern, param="regex")


@pytest.mark.parametrize(
    "pattern", ["(a", "a)", "[b-a]", "*a", "a{3,1}", "a{99999999}", "[a", "a\\", "x" * 9000, "[^\0-\U0010ffff]"]
)
def test_what_is_no_regex_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest):
        from_regex(pattern, param="regex")


def test_hostile_regexes_are_quick() -> None:
    for pattern in ("(x+x+)+y", "(a|a)*(a|a)*b", "((a{1,1000}){1,1000}){1,1000}", "(a?){64}a{64}"):
        grammar = from_regex(pattern, param="regex")
        assert not matches(grammar, "x" * 50)


def test_counts_within_counts_are_printed_once() -> None:
    with budget("regex"):
        assert len(to_ebnf(from_regex("(((a{1,100}){1,100}){1,100}){1,100}", param=None))) < 100_000
        assert len(to_ebnf(from_regex("((f{200}){200}){200}", param=None))) < 100_000


def test_printing_is_bounded_as_compiling_is(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = from_regex("".join(f"(a{n}|b{n}c?){{1,3}}" for n in range(30)), param=None)
    monkeypatch.setattr(limits, "MAX_COMPILE_STEPS", 60)
    with budget("regex"), pytest.raises(InvalidRequest, match="60 steps"):
        to_ebnf(grammar)


def test_choices_are_exact() -> None:
    grammar = from_choices(["yes", "yes!", "né"])
    assert matches(grammar, "yes") and matches(grammar, "né") and not matches(grammar, "ye")
    assert not is_complete(grammar, "yes") and is_complete(grammar, "yes!")
    for wrong in ([], ["\ud800"], ["a\0b"], [str(n) for n in range(10_000)]):
        with pytest.raises(InvalidRequest):
            from_choices(wrong)


GRAMMARS: list[tuple[str, list[str], list[str]]] = [
    ('root ::= "yes" | "no" # a comment\n', ["yes", "no"], ["maybe"]),
    ('root ::= e\ne ::= e "+" t | t\nt ::= [0-9]+ | "(" e ")"', ["1", "1+(2+3)+4"], ["1+", "()"]),
    ('root ::= (ws "a")* end\nws ::= " "*\nend ::= ws', ["  a a ", ""], ["b"]),
    ('root ::= x{2,3} y?\nx ::= "a" | "é"\ny ::= [^a-z\\]]', ["aéa!", "aa"], ["a", "aa]"]),
    ('root ::= a | "q"\na ::= b | "x"\nb ::= a "y" | root | "z"', ["q", "xyy", "zy", "qy"], ["y", "xq"]),
    ('root ::= a*\na ::= b*\nb ::= "x"', ["", "xxx"], ["y"]),
    ('root ::= "\\x41\\u00e9\\"" |\n  "b"', ['Aé"', "b"], ["A"]),
]


@pytest.mark.parametrize(("source", "fits", "misfits"), GRAMMARS)
def test_reads_grammars_as_llama_cpp_writes_them(source: str, fits: list[str], misfits: list[str]) -> None:
    grammar = from_ebnf(source, param="grammar")
    assert all(matches(grammar, text) for text in fits)
    assert not any(matches(grammar, text) for text in misfits)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ('root ::= "a"\nb ::= c', "Line 2 of the grammar: the rule `c` is used and not defined"),
        ('a ::= "x"', "no rule `root`"),
        ('root ::= "x', "Line 1"),
        ('root ::= b\nb ::= c "x"\nc ::= b "y" | "z"', "left-recursive"),
        ("root ::= root", "No text"),
        ('root = "x"', "`::=` must come"),
        ('root ::= ("a"', "without its `)`"),
        ('root ::= "a" )', "without its `(`"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= "a"{3,1}', "ends before it begins"),
        ('root ::= "a"{100000}', "a count over"),
        ('root ::= "a"{\u0663}', "counts are written"),
        ('root ::= "a\\0"', "NUL"),
        ('root ::= "a" [\\0]', "NUL"),
        ('root ::= "a"\nroot ::= "b"', "there twice"),
        ("root ::= " + "(" * 500 + '"a"' + ")" * 500, "nested deeper"),
    ],
)
def test_says_where_a_grammar_is_wrong(source: str, what: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(what)):
        from_ebnf(source, param="grammar")


INTEGER_TAG = {
    "type": "tag",
    "begin": "<n>",
    "content": {"type": "json_schema", "json_schema": {"type": "integer"}},
    "end": "</n>",
}
TAGS: list[tuple[Any, list[str], list[str]]] = [
    (
        {
            "type": "structural_tag",
            "structures": [{"begin": "<f=get>", "schema": {"type": "integer"}, "end": "</f>"}],
            "triggers": ["<f="],
        },
        ["", "Hi <f", "a<f=get>1</f> b <f=get>2</f>"],
        ["<f=put>1</f>", "<f=get>x</f>", "<f="],
    ),
    (
        {
            "format": {
                "type": "sequence",
                "elements": [
                    {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"},
                    {
                        "type": "or",
                        "elements": [
                            {"type": "regex", "pattern": "x+"},
                            {"type": "const_string", "value": "no"},
                            {"type": "grammar", "grammar": 'root ::= "g"'},
                        ],
                    },
                ],
            }
        },
        ["<t>hm</t</t>no", "<t></t>xx", "<t> </t>g"],
        ["no", "<t>hm</t>", "<t>a</t>b</t>x"],
    ),
    (
        {"format": {"type": "tags_with_separator", "separator": ";", "tags": [INTEGER_TAG], "at_least_one": True}},
        ["<n>1</n>", "<n>1</n>;<n>2</n>"],
        ["", "<n>1</n>;"],
    ),
    (
        {
            "format": {
                "type": "triggered_tags",
                "triggers": ["<n"],
                "tags": [INTEGER_TAG],
                "at_least_one": True,
                "stop_after_first": True,
            }
        },
        ["so <n>1</n>"],
        ["so", "<n>1</n>x"],
    ),
]


@pytest.mark.parametrize(("tag", "fits", "misfits"), TAGS)
def test_honours_structural_tags(tag: Any, fits: list[str], misfits: list[str]) -> None:
    for written in (tag, json.dumps(tag)):
        grammar = from_structural_tag(written, param="structural_tag")
        assert all(matches(grammar, text) for text in fits)
        assert not any(matches(grammar, text) for text in misfits)


@pytest.mark.parametrize(
    "tag",
    [
        [],
        "{",
        {},
        {"format": {"type": "qwen_xml_parameter"}},
        {"format": {"type": "const_string", "value": "a\0"}},
        *({"format": {"type": "any_text", "excludes": wrong}} for wrong in ([5], "ab", {"a": 1})),
        *(
            {"format": {"type": "triggered_tags", "triggers": ["<n"], "tags": [INTEGER_TAG], "excludes": wrong}}
            for wrong in ([5], "ab")
        ),
        {"structures": [], "triggers": ["<"]},
        {"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<b"]},
    ],
)
def test_refuses_other_structural_tags(tag: Any) -> None:
    with pytest.raises(InvalidRequest):
        from_structural_tag(tag, param="structural_tag")


def test_puts_grammars_together_whose_rules_have_the_same_names() -> None:
    one = from_ebnf('root ::= a a\na ::= "1" | "(" a ")"', param=None)
    other = from_ebnf('root ::= a\na ::= "2" | "[" a "]"', param=None)
    whole = sequence(literal("<"), one, alternatives(other, literal("-")), repeat(other, 1, 2), literal(">"))
    assert matches(whole, "<1(1)[2]2>") and matches(whole, "<11-22>")
    assert not matches(whole, "<11[1]2>") and not matches(whole, "<11->")


def test_free_text_ends_where_a_stop_begins() -> None:
    free = text_without(["<call>", "<|end|>"])
    call = sequence(free, literal("<call>"), json_object())
    for text in ("", "a < b", "<cal", "<<<call", "<|end<call"):
        assert matches(free, text)
        assert matches(call, text + "<call>{}")
    for text in ("<call>", "x<|end|>", "<<call>"):
        assert not matches(free, text)


def test_remaining_goes_on_at_every_place_of_a_text() -> None:
    tree = {
        "$ref": "#/$defs/t",
        "$defs": {
            "t": {
                "type": "object",
                "properties": {
                    "é": {"type": "string", "maxLength": 9},
                    "k": {"type": "array", "items": {"$ref": "#/$defs/t"}},
                },
                "additionalProperties": False,
            }
        },
    }
    grammar = sequence(
        text_without(["<c>"]), literal("<c>"), from_json_schema(tree, param=None), repeat(literal("ab"), 1, 3)
    )
    text = 'one <c two <c>{"é": "a\\nb", "k": [{}, {"é":"x"}]}abab'
    for cut in range(len(text) + 1):
        rest = remaining(grammar, text[:cut])
        assert matches(rest, text[cut:]), text[:cut]
        assert not matches(rest, text[cut:] + "?")
        assert matches(remaining(rest, text[cut : cut + 3]), text[cut + 3 :])
    with pytest.raises(ValueError, match="does not fit"):
        remaining(grammar, "one <c>[")


def test_ambiguity_does_not_hang() -> None:
    grammar = from_ebnf('root ::= s\ns ::= "a" s? s? | "(" s ")"', param=None)
    assert matches(grammar, "a" * 30)
    with pytest.raises(ValueError, match="does not fit"):
        remaining(grammar, "ab")
