"""Settings: one declaration each for flag, environment variable, default, bounds and help."""

from typing import Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from chatfleet.core.errors import ConfigurationError

ENV_PREFIX = "CHATFLEET_"


class Settings(BaseSettings):
    """Base of a component's settings. What is not given comes from CHATFLEET_<NAME>, else is the default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, protected_namespaces=(), extra="forbid", frozen=True
    )

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Settings from the values given and the environment. Raises ConfigurationError."""
        try:
            return cls(**given)
        except SettingsError as exc:  # a list or object that is not JSON, in the environment
            raise ConfigurationError(f"{ENV_PREFIX}... in the environment is not valid JSON: {exc}.") from exc
        except ValidationError as exc:
            wrong = exc.errors(include_url=False)[0]
            name = ".".join(map(str, wrong["loc"]))
            flag = "--" + name.replace("_", "-")
            raise ConfigurationError(
                f"{flag} (or {ENV_PREFIX}{name.upper()}) cannot be {wrong['input']!r}: {wrong['msg']}."
            ) from exc


def setting(default: Any, help_text: str, panel: str, *, flag: str | None = None, **bounds: Any) -> Any:
    """A field of a Settings class. `flag` where the command-line name differs from the field's."""
    return Field(default=default, description=help_text, json_schema_extra={"panel": panel, "flag": flag}, **bounds)
