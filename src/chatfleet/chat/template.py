"""Chat templates: the model's own Jinja, in a sandbox, bounded in time and size.

Template authors are not trusted with the process: attribute access is Jinja's immutable sandbox's, every
loop turn and macro call checks a deadline, and what a template may build at once is bounded.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chatfleet.core.errors import ConfigurationError, InvalidRequest

MAX_SECONDS = 2.0
MAX_CHARS = 16_000_000
_MAX_REPEAT = 1_000_000

_deadline: ContextVar[float] = ContextVar("template_deadline")


class TemplateLimit(Exception):
    """A template ran too long or wrote too much."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a deadline in every loop and macro, and bounded repetition."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.filters["tojson"] = _tojson
        for name in ("center", "indent", "wordwrap"):
            self.filters[name] = _bounded(self.filters[name])
        self.filters["format"] = lambda form, *values: _checked_format(str(form)) % values

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Parser(self, source, name, filename).parse()
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            cast(nodes.For, node).body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return tree

    @staticmethod
    def tick() -> None:
        if time.monotonic() > _deadline.get():
            raise TemplateLimit(f"it ran for more than {MAX_SECONDS} s")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "*" and any(
            hasattr(sized, "__len__") and isinstance(times, int) and len(sized) * times > _MAX_REPEAT
            for sized, times in ((left, right), (right, left))
        ):
            raise TemplateLimit("it repeats a text too often")
        if operator == "%" and isinstance(left, str):
            _checked_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__name__", None) in ("format", "format_map"):
            _checked_format(str(getattr(obj, "__self__", "")))
        _check_numbers(args)
        return super().call(context, obj, *args, **kwargs)


def _check_numbers(values: Iterable[Any]) -> None:
    """Widths and counts stay small: `"x".center(10**9)` would take the memory in one call."""
    if any(isinstance(value, int) and value > _MAX_REPEAT for value in values):
        raise TemplateLimit(f"it asks for a width or count over {_MAX_REPEAT}")


def _checked_format(form: str) -> str:
    if re.search(r"\d{5}|\*", form):
        raise TemplateLimit("a format asks for a width over 9999")
    return form


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
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
        self.source = source
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
        return "".join(pieces)
