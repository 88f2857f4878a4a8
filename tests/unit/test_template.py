"""Chat templates: rendered as the model's author meant, and harmless whoever wrote them."""

from typing import Any

import pytest

from chatfleet.chat.template import MAX_CHARS, ChatTemplate
from chatfleet.core.errors import ConfigurationError, InvalidRequest
from chatfleet.worker.model_source import chosen_template

USER = [{"role": "user", "content": "hi"}]


DOUBLING_LIST = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(USER, variables=variables)


def test_chatml_renders_turns_and_the_generation_prompt() -> None:
    source = chosen_template("chatml")
    assert source is not None
    assert ChatTemplate(source).render(USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(source).render(USER, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_tools_and_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ tools | tojson }}{{ bos_token }}{{ extra }}", variables={"bos_token": "<s>"})
    tools = [{"type": "function", "function": {"name": "größe", "parameters": {"a": "<b>"}}}]
    assert template.render(USER, tools=tools, variables={"extra": "!"}) == (
        '[{"type": "function", "function": {"name": "größe", "parameters": {"a": "<b>"}}}]<s>!'
    )


def test_a_templates_own_complaint_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


def test_blocks_for_training_targets_and_loop_controls_are_understood() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert render(source) == "hi"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ 9 ** 9 ** 9 }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    try:
        rendered = render(source)
    except InvalidRequest:
        return
    assert rendered == ""  # an undefined attribute renders as nothing


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n + 1) }}{% endfor %}{% endmacro %}{{ m(0) }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ 999999999 * 'x' }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        DOUBLING_LIST + "{{ ns.x }}",
        pytest.param(DOUBLING_LIST + "{{ ns.x ~ '' }}", marks=pytest.mark.long),
        pytest.param(DOUBLING_LIST + "{{ ns.x | tojson }}", marks=pytest.mark.long),
        pytest.param(DOUBLING_LIST + "{{ ns.x | string }}", marks=pytest.mark.long),
        "{{ [[1]] | tojson(indent=900000) }}",
        "{{ lipsum(n=200000) }}",
        "{% set x = 'x' * 999999 %}{{ x.replace('x', x) }}",
        "{% set x = 'x' * 999999 %}{{ x | replace('x', x) }}",
        "{% set x = 'x' * 999999 %}{{ ([1] * 999999) | join(x) }}",
        "{% set x = 'x' * 999999 %}{{ x.join(['a'] * 999999) }}",
    ],
)
def test_a_template_cannot_take_all_time_or_memory(source: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot render"):
        render(source)


def test_a_lone_surrogate_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        render("{{ '\\ud800' }}")


def test_ordinary_formatting_still_works() -> None:
    assert render("{{ '%s-%02d' % ('a', 7) }} {{ '{}!'.format('b') }} {{ 'ab' * 3 }} {{ 7 % 4 }}") == "a-07 b! ababab 3"


def test_a_template_that_does_not_compile_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="line 1"):
        ChatTemplate("{% for %}")


def test_the_size_limit_is_far_above_any_prompt() -> None:
    assert MAX_CHARS > 10_000_000


def test_an_unknown_template_name_says_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match="chatml"):
        chosen_template("no-such-template")
