"""Settings: one declaration each for flag, environment variable, default, bounds and help."""

from typing import Any, Self, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from chatfleet.core.errors import ConfigurationError

ENV_PREFIX = "CHATFLEET_"


class _Environment(EnvSettingsSource):
    """Lists may be JSON, or their items separated by commas."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if get_origin(field.annotation) is list and not value.lstrip().startswith("["):
            return [item.strip() for item in value.split(",") if item.strip()]
        return super().decode_complex_value(field_name, field, value)


class Settings(BaseSettings):
    """Base of a component's settings. What is not given comes from CHATFLEET_<NAME>, else is the default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, protected_namespaces=(), extra="forbid", frozen=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

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
            field = cls.model_fields.get(name.partition(".")[0])
            flag = flag_of(name, field)
            shown = "set to what it is" if field is not None and _is_secret(field) else repr(wrong["input"])
            reason = wrong["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{flag} (or {ENV_PREFIX}{name.upper()}) cannot be {shown}: {reason}.") from exc


def flag_of(name: str, field: FieldInfo | None) -> str:
    """What a field is called on the command line: its own flag, else its name."""
    extra = field.json_schema_extra if field is not None else None
    own = extra.get("flag") if isinstance(extra, dict) else None
    return str(own or "--" + name.replace("_", "-"))


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def setting(default: Any, help_text: str, panel: str, *, flag: str | None = None, **bounds: Any) -> Any:
    """A field of a Settings class. `flag` where the command-line name differs from the field's.

    A single secret has no flag: the command line of a process can be read by every user of the machine.
    """
    return Field(default=default, description=help_text, json_schema_extra={"panel": panel, "flag": flag}, **bounds)
