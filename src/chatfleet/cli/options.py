"""Command-line options made from a Settings class, so that no default stands in two places."""

from collections.abc import Callable
from inspect import Parameter, Signature
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from chatfleet.core.settings import Settings, flag_of


def settings_command(settings: type[Settings], run: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """A typer command with an option per setting; `run` gets those that were given.

    The field `model` (or `models`) is the command's argument; a single secret is no option at all. The docstring of
    `run` is the command's help.
    """

    def command(**options: Any) -> None:
        run({name: value for name, value in options.items() if value not in (None, [])})

    parameters = [
        _parameter(name, field) for name, field in settings.model_fields.items() if field.annotation != SecretStr | None
    ]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = run.__doc__
    return command


def _parameter(name: str, field: FieldInfo) -> Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    annotation: Any = _plain(field.annotation)
    if get_origin(annotation) is dict:
        annotation = str
    elif annotation == list[SecretStr]:
        annotation = list[str]
    description: Any
    if name in ("model", "models"):
        description = typer.Argument(help=field.description, show_default=False)
    else:
        default = field.get_default(call_default_factory=True)
        value = ", ".join(default) if isinstance(default, list) else default
        shown = f" Default: {value}." if value not in (None, "", {}, False, 0) else ""
        description = typer.Option(
            flag_of(name, field),
            help=f"{field.description}{shown}",
            show_default=False,
            rich_help_panel=str(extra.get("panel")),
        )
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, description])


def _plain(annotation: Any) -> Any:
    """The type without what only pydantic reads of it: typer would show that."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(map(_plain, get_args(annotation)))]  # noqa: UP007 - of a tuple
    return annotation
