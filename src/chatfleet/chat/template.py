"""Chat templates: the model's own Jinja, in a sandbox, bounded in time and size.

Template authors are not trusted with the process: attribute access is Jinja's immutable sandbox's, every
loop turn and macro call checks a deadline, and what one expression may build is bounded.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from chatfleet.core.errors import ConfigurationError, InvalidRequest

MAX_SECONDS = 2.0
MAX_CHARS = 16_000_000

_MAX_INDENT = 16

_deadline: ContextVar[float] = ContextVar("template_deadline")


class TemplateLimit(Exception):
    """A template ran too long or wrote too much."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a deadline in every loop and macro, and a bound on what one step may build."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_checked_size
        )
        del self.globals["lipsum"]  # writes as many words as it is told to
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.filters["tojson"] = _tojson
        for name in ("center", "indent", "wordwrap", "replace", "join", "string"):
            self.filters[name] = _bounded(name, self.filters[name])
        self.filters["format"] = lambda form, *values: _checked_format(str(form)) % values

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Parser(self, source, name, filename).parse()
        return cast(nodes.Template, _Bounds().visit(tree))

    @staticmethod
    def tick() -> None:
        if time.monotonic() > _deadline.get():
            raise TemplateLimit(f"it ran for more than {MAX_SECONDS} s")

    @staticmethod
    def concat_bounded(*parts: Any) -> str:
        """The operator `~`."""
        texts = [str(_checked_size(part)) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if hasattr(sized, "__len__") and isinstance(times, int):
                    _check_size(len(sized) * times)
        if operator == "%" and isinstance(left, str):
            _checked_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        if isinstance(owner, str):
            if name in ("format", "format_map"):
                _checked_format(owner)
            _check_text_method(name, (owner, *args, *kwargs.values()))
        return super().call(context, obj, *args, **kwargs)


class _Bounds(NodeTransformer):
    """Puts the deadline into every loop turn and macro call, and the size bound into every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return self.generic_visit(node)

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        bounded = nodes.EnvironmentAttribute("concat_bounded", lineno=node.lineno)
        return nodes.Call(bounded, node.nodes, [], None, None, lineno=node.lineno)


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise TemplateLimit(f"it builds a value longer than {MAX_CHARS}")


def _checked_size(value: Any) -> Any:
    """The value, if writing it out is bounded: a short list of references can stand for gigabytes of text."""
    if not isinstance(value, list | tuple | dict | set):
        return value
    size, unseen = 0, [value]
    while unseen:
        item = unseen.pop()
        if isinstance(item, dict):
            unseen += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            unseen += item
        size += len(item) if isinstance(item, str) else 1
        _check_size(size + len(unseen))
    return value


def _check_text_method(name: str, values: Sequence[Any]) -> None:
    """Bound what a method of a text, or the filter of the same name, may build out of `values`."""
    for value in values:
        if isinstance(value, int):  # a width or a count: `"x".center(10**9)`
            _check_size(value)
        _checked_size(value)
    if name == "replace" and len(values) >= 3:
        text, old, new = map(str, values[:3])
        _check_size(len(text) + text.count(old) * len(new))
    elif name == "join":
        pieces = [value for value in values if isinstance(value, list | tuple)]
        separator = max((len(value) for value in values if isinstance(value, str)), default=0)
        _check_size(sum(len(str(piece)) + separator for value in pieces for piece in value))


def _checked_format(form: str) -> str:
    if re.search(r"\d{5}|\*", form):
        raise TemplateLimit("a format asks for a width over 9999")
    return form


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        _check_text_method(name, [value for value in values if not isinstance(value, Environment | EvalContext)])
        return function(*args, **kwargs)

    return checked


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which some templates use to mark training targets."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, indent: int | None = None, **kwargs: Any) -> str:
    """As Hugging Face's: JSON with characters as they are (Jinja's own escapes HTML)."""
    if indent is not None and indent > _MAX_INDENT:
        raise TemplateLimit(f"it indents JSON by more than {_MAX_INDENT}")
    _checked_size(value)
    return json.dumps(value, ensure_ascii=False, indent=indent, **kwargs)


class _Refused(Exception):
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


class ChatTemplate:
    """A compiled chat template. Rendering takes no lock and may run in any thread."""

    def __init__(self, source: str, *, variables: Mapping[str, Any] | None = None) -> None:
        """`variables` are always given to the template (bos_token, eos_token, --chat-template-kwargs).

        Raises ConfigurationError when the template does not compile.
        """
        self.knows_developer = "developer" in source
        self._variables = dict(variables or {})
        try:
            self._template = _Sandbox().from_string(source)
        except TemplateError as exc:
            raise ConfigurationError(
                f"The chat template does not compile: {exc} (line {getattr(exc, 'lineno', '?')}). "
                "Give a working one with --chat-template."
            ) from exc

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises InvalidRequest when the template refuses these messages or hits a limit."""
        _deadline.set(time.monotonic() + MAX_SECONDS)
        pieces: list[str] = []
        size = 0
        arguments = {
            **self._variables,
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            for piece in self._template.generate(arguments):
                size += len(piece)
                if size > MAX_CHARS:
                    raise TemplateLimit(f"it wrote more than {MAX_CHARS} characters")
                _Sandbox.tick()
                pieces.append(piece)
        except _Refused as exc:
            raise InvalidRequest(f"The model's chat template refuses these messages: {exc}", param="messages") from exc
        except Exception as exc:  # a template can raise anything that an expression can
            raise InvalidRequest(
                f"The model's chat template cannot render these messages: {exc}", param="messages"
            ) from exc
        prompt = "".join(pieces)
        try:
            prompt.encode()
        except UnicodeEncodeError as exc:
            raise InvalidRequest(
                "The rendered prompt has a lone surrogate, which is no character.", param="messages"
            ) from exc
        return prompt
