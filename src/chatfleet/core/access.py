"""Who a component belongs to: its controllers, and the token that all parts of a fleet share."""

import re
from pathlib import Path

from pydantic import SecretStr, TypeAdapter, ValidationError, field_validator

from chatfleet.core.errors import ConfigurationError
from chatfleet.core.fleet import BaseUrl
from chatfleet.core.settings import Settings, setting

_FLEET = "Fleet"
_TOKEN = re.compile(r"[\x21-\x7e]{16,4096}")
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_BASE_URL: TypeAdapter[str] = TypeAdapter(BaseUrl)


def is_loopback(host: str) -> bool:
    return host.strip("[]").lower() in _LOOPBACK_HOSTS


class FleetAccess(Settings):
    """The token of a fleet, as every component takes it."""

    fleet_token: SecretStr | None = setting(None, "The fleet's token, from the environment only.", _FLEET)
    fleet_token_file: Path | None = setting(
        None, "File that holds the fleet's token (or set CHATFLEET_FLEET_TOKEN).", _FLEET
    )

    def token(self) -> str | None:
        """The token, or None. Raises ConfigurationError when its file cannot be read or it is too weak."""
        if self.fleet_token is not None:
            token, source = self.fleet_token.get_secret_value().strip(), "CHATFLEET_FLEET_TOKEN"
        elif self.fleet_token_file is not None:
            token, source = read_secret_file(self.fleet_token_file, "--fleet-token-file"), str(self.fleet_token_file)
        else:
            return None
        if not _TOKEN.fullmatch(token):
            raise ConfigurationError(
                f"The fleet token in {source} must be 16 or more printable characters without spaces. "
                "Make one: openssl rand -hex 32"
            )
        return token

    def listening_token(self, host: str) -> str | None:
        """The token of a component that listens on `host`: without one it may listen on loopback only."""
        token = self.token()
        if token is None and not is_loopback(host):
            raise ConfigurationError(
                f"--host {host} lets other machines in, and there is no fleet token to know them by. Set "
                "CHATFLEET_FLEET_TOKEN (make one: openssl rand -hex 32), or listen on 127.0.0.1."
            )
        return token


class FleetMember(FleetAccess):
    """The same, of a component that belongs to controllers."""

    controller_urls: list[str] = setting(
        [], "Controller, such as http://10.0.0.1:21001; repeatable.", _FLEET, flag="--controller-url"
    )

    @field_validator("controller_urls")
    @classmethod
    def _checked(cls, urls: list[str]) -> list[str]:
        try:
            return list(dict.fromkeys(map(_BASE_URL.validate_python, urls)))
        except ValidationError as exc:
            raise ValueError("each must be a URL such as http://10.0.0.1:21001") from exc


def read_secret_file(path: Path, flag: str) -> str:
    """The text of a small file. Raises ConfigurationError."""
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            return file.read(65536).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{flag}: {path} cannot be read: {exc}.") from exc
