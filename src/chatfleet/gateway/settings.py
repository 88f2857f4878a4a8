"""How a gateway is set up."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator, model_validator

from chatfleet.core.access import FleetMember, read_secret_file
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.settings import Settings, setting
from chatfleet.dispatch.attempts import Patience
from chatfleet.dispatch.policies import DEFAULT_POLICY, POLICY_NAMES
from chatfleet.store.database import Bounds

if TYPE_CHECKING:
    import ssl

_MODELS, _KEYS, _CORS, _NETWORK = "Models", "API keys", "CORS", "Network"
_FLEET = "Fleet"
_RELIABILITY = "When things fail"
_STORE = "Stored completions"
_PRIORITY = re.compile(r"priority=(-?[0-9]{1,6})")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")


class EndpointSettings(Settings):
    """What a gateway and `chatfleet serve` let one say of the endpoint that clients see."""

    aliases: list[str] = setting(
        [], "Another name for a model, as gpt-4o=chatfleet-tiny; repeatable.", _MODELS, flag="--alias"
    )
    default_model: str | None = setting(None, "The model of requests that name none.", _MODELS)
    policies: list[str] = setting(
        [],
        f"How a worker is chosen: NAME, or MODEL=NAME for one model; repeatable. {DEFAULT_POLICY} (default), "
        f"{', '.join(name for name in POLICY_NAMES if name != DEFAULT_POLICY)}.",
        _MODELS,
        flag="--policy",
    )
    session_header: str = setting(
        "x-session-id", "Header that names a request's session, for --policy session. Without it: its user.", _MODELS
    )
    api_keys: list[SecretStr] = setting(
        [], "Key that clients must send; repeatable. Better: a file, or CHATFLEET_API_KEYS.", _KEYS, flag="--api-key"
    )
    api_keys_file: Path | None = setting(
        None, "File with a key a line, or KEY priority=N (lower is served sooner); # begins a comment.", _KEYS
    )
    allowed_origins: list[str] = setting(["*"], "Origin of web pages that may call; repeatable.", _CORS)
    allowed_methods: list[str] = setting(["*"], "Method that they may use; repeatable.", _CORS)
    allowed_headers: list[str] = setting(["*"], "Header that they may send; repeatable.", _CORS)
    allow_credentials: bool = setting(False, "Let them send cookies and authorization.", _CORS)
    host: str = setting("127.0.0.1", "Address to listen on.", _NETWORK)
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", _NETWORK, ge=0, le=65535)
    ssl_certfile: Path | None = setting(None, "Speak https with this certificate (PEM), its chain after it.", _NETWORK)
    ssl_keyfile: Path | None = setting(None, "The certificate's private key (PEM, without a password).", _NETWORK)
    processes: int = setting(1, "Gateway processes that share the port.", _NETWORK, ge=1, le=256)
    trusted_proxies: list[str] = setting(
        [], "Address or network whose X-Forwarded-* headers are believed; repeatable.", _NETWORK
    )
    head_timeout: float = setting(20.0, "Seconds that a request's head may take to arrive.", _NETWORK, gt=0, le=3600)
    body_timeout: float = setting(
        60.0, "Seconds that a request's body may take after its head.", _NETWORK, gt=0, le=3600
    )
    connect_timeout: float = setting(
        5.0, "Seconds until a connection to a worker must be there.", _RELIABILITY, gt=0, le=3600
    )
    first_event_timeout: float = setting(
        300.0, "Seconds until the first event of a stream must come from a worker.", _RELIABILITY, gt=0, le=86400
    )
    stall_timeout: float = setting(
        60.0, "Seconds of silence after which a stream is taken from its worker.", _RELIABILITY, gt=0, le=86400
    )
    total_timeout: float = setting(3600.0, "Seconds that a request may take.", _RELIABILITY, gt=0, le=604800)
    retry_timeout: float = setting(
        10.0, "Seconds for which a worker is looked for when one fails or none is there.", _RELIABILITY, ge=0, le=3600
    )
    max_replays: int = setting(
        1, "How often a request is sent again after a worker died with it.", _RELIABILITY, ge=0, le=100
    )
    max_requests: int = setting(
        4096, "Requests on their way at once, per process; past it 429.", _RELIABILITY, ge=1, le=10**6
    )
    drain_timeout: float = setting(
        30.0, "Seconds that requests get to finish in when the gateway is told to stop.", _RELIABILITY, ge=0, le=86400
    )
    recovery_buffer_kb: int = setting(
        256,
        "Kilobytes kept of each stream, for another worker to go on from; past it none can.",
        _RELIABILITY,
        ge=0,
        le=1024**2,
    )
    idempotency_buffer_mb: int = setting(
        64,
        "Megabytes of answers kept for repeats of requests with an Idempotency-Key, which get them for 10 minutes.",
        _RELIABILITY,
        ge=1,
        le=1024**2,
    )
    store_path: Path | None = setting(
        None,
        "SQLite file for completions that clients want kept (store: true). Default: gateway-PORT.db in "
        "$XDG_STATE_HOME/chatfleet, or in ~/.local/state/chatfleet.",
        _STORE,
    )
    no_store: bool = setting(False, "Keep none: store: true is refused.", _STORE)
    store_days: float = setting(30.0, "Days for which one is kept.", _STORE, gt=0, le=36500)
    store_mb: int = setting(1024, "Megabytes kept; past them the oldest go.", _STORE, ge=1, le=1024**3)
    store_completions: int = setting(100_000, "Completions kept; past them the oldest go.", _STORE, ge=1, le=10**9)
    store_completions_per_key: int = setting(
        10_000, "The same of each API key; without keys, of all clients.", _STORE, ge=1, le=10**9
    )
    access_log: bool = setting(False, "Log a line per request: who, what, status, how long. No contents.", _NETWORK)
    keep_alive_interval: float = setting(
        15.0,
        "Seconds of silence after which a stream gets a comment, so that proxies keep it open.",
        _NETWORK,
        gt=0,
        le=3600,
    )

    @field_validator("aliases")
    @classmethod
    def _pairs(cls, values: list[str]) -> list[str]:
        for value in values:
            name, _, model = value.partition("=")
            if not name.strip() or not model.strip():
                raise ValueError("write NAME=MODEL, such as gpt-4o=chatfleet-tiny")
        return values

    @field_validator("policies")
    @classmethod
    def _known_policies(cls, values: list[str]) -> list[str]:
        if len([value for value in values if "=" not in value]) > 1:
            raise ValueError("name one policy for all models, and others as MODEL=NAME")
        for value in values:
            model, is_pair, name = value.rpartition("=")
            if name.strip() not in POLICY_NAMES or (is_pair and not model.strip()):
                raise ValueError(f"write NAME or MODEL=NAME, and NAME is one of {', '.join(POLICY_NAMES)}")
        return values

    @field_validator("session_header")
    @classmethod
    def _header_name(cls, value: str) -> str:
        if not _HEADER_NAME.fullmatch(value):
            raise ValueError("it must be the name of a header, such as x-session-id")
        return value.lower()

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, values: list[str]) -> list[str]:
        for value in values:
            ip_network(value, strict=False)  # its ValueError says what is wrong
        return values

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, values: list[str]) -> list[str]:
        for value in values:
            parts = urlsplit(value)
            if value not in ("*", f"{parts.scheme}://{parts.netloc}") or (value != "*" and not parts.netloc):
                raise ValueError("an origin is like https://app.example.com, without a path, or *")
        return values

    @model_validator(mode="after")
    def _credentials_need_origins(self) -> Self:
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigurationError(
                "--allow-credentials with --allowed-origins '*' would let every web page act with its visitor's "
                "credentials, and browsers refuse it. Name the origins: --allowed-origins https://app.example.com"
            )
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            given, missing = ("--ssl-certfile", "--ssl-keyfile")[:: 1 if self.ssl_keyfile is None else -1]
            raise ConfigurationError(
                f"{given} is given without {missing}. To speak https give both: the certificate and its private key."
            )
        return self

    def tls(self) -> "ssl.SSLContext | None":
        """What the endpoint speaks https with; None for plain HTTP. Raises ConfigurationError. Reads files."""
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            return None
        from chatfleet.http.tls import server_context

        return server_context(self.ssl_certfile, self.ssl_keyfile)

    def patience(self) -> Patience:
        return Patience(
            first_event_s=self.first_event_timeout,
            stall_s=self.stall_timeout,
            total_s=self.total_timeout,
            retry_s=self.retry_timeout,
            max_replays=self.max_replays,
        )

    def kept_times(self) -> tuple[float, ...]:
        """The times, in seconds, that connections look after."""
        return (
            self.keep_alive_interval,
            self.head_timeout,
            self.body_timeout,
            self.first_event_timeout,
            self.stall_timeout,
            self.total_timeout,
        )

    def store_bounds(self) -> Bounds:
        return Bounds(
            per_owner=self.store_completions_per_key,
            total=self.store_completions,
            size=self.store_mb * 2**20,
            age_s=self.store_days * 86400,
        )

    def alias_map(self) -> dict[str, str]:
        """Each alias and the model it stands for."""
        return {name.strip(): model.strip() for name, _, model in (value.partition("=") for value in self.aliases)}

    def default_policy(self) -> str:
        return next((value.strip() for value in self.policies if "=" not in value), DEFAULT_POLICY)

    def policy_map(self) -> dict[str, str]:
        """Each model that has a policy of its own, and that. An alias stands for its model."""
        aliases = self.alias_map()
        pairs = (value.rpartition("=") for value in self.policies if "=" in value)
        return {aliases.get(name.strip(), name.strip()): policy.strip() for name, _, policy in pairs}

    def keys(self) -> dict[str, int]:
        """All API keys, from options, environment and file, each with the priority of its requests; none means open.
        Raises ConfigurationError."""
        keys = {key.get_secret_value(): 0 for key in self.api_keys}
        if self.api_keys_file is not None:
            lines = read_secret_file(self.api_keys_file, "--api-keys-file").splitlines()
            keys |= dict(_key(line) for line in lines if line.strip() and not line.lstrip().startswith("#"))
        if not keys and self.model_fields_set & {"api_keys", "api_keys_file"}:
            raise ConfigurationError(
                "API keys were asked for, and --api-keys-file or CHATFLEET_API_KEYS holds none, which would leave the "
                "endpoint open. Write one key a line, or leave the setting out."
            )
        for key in keys:
            if not key.isascii() or not key.isprintable() or " " in key or not key:
                raise ConfigurationError("An API key must be printable ASCII without spaces, and not empty.")
        return keys


def _key(line: str) -> tuple[str, int]:
    """A key, and the priority of its requests. Raises ConfigurationError."""
    key, *rest = line.split()
    if not rest:
        return key, 0
    if len(rest) > 1 or (found := _PRIORITY.fullmatch(rest[0])) is None:
        raise ConfigurationError(
            "A line of --api-keys-file has something behind its key that is not understood. Write the key alone, or "
            "KEY priority=N, where N is a whole number of at most six digits."
        )
    return key, int(found[1])


class GatewaySettings(EndpointSettings, FleetMember):
    fd: int | None = setting(None, "Listen on this inherited file descriptor, not on --host and --port.", _NETWORK)
    controller_urls: list[str] = setting(
        ["http://127.0.0.1:21001"], "Controller of the fleet; repeatable.", _FLEET, flag="--controller-url"
    )
