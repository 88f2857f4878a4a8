"""How a controller is set up."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from chatfleet.core.access import FleetAccess
from chatfleet.core.errors import ConfigurationError
from chatfleet.core.fleet import EXPIRY_S, HEARTBEAT_INTERVAL_S
from chatfleet.core.settings import setting

_FLEET, _NETWORK = "Fleet", "Network"


class ControllerSettings(FleetAccess):
    host: str = setting("127.0.0.1", "Address to listen on; beyond loopback only with a fleet token.", _NETWORK)
    port: int = setting(21001, "Port to listen on; 0 takes a free one.", _NETWORK, ge=0, le=65535)
    fd: int | None = setting(None, "Listen on this inherited file descriptor, not on --host and --port.", _NETWORK)
    heartbeat_interval: float = setting(
        HEARTBEAT_INTERVAL_S, "Seconds between the heartbeats of a worker.", _FLEET, gt=0, le=3600
    )
    expiry: float = setting(EXPIRY_S, "Seconds of silence after which a worker is gone.", _FLEET, gt=0, le=86400)
    controller_id: str | None = setting(
        None, "A name of its own. Default: host name and port.", _FLEET, min_length=1, max_length=128
    )
    state_file: Path | None = setting(
        None,
        "Where registered servers are remembered. Default: by port, in the user's state folder.",
        _FLEET,
    )

    @model_validator(mode="after")
    def _expiry_outlasts_a_heartbeat(self) -> Self:
        if self.expiry <= self.heartbeat_interval:
            raise ConfigurationError(
                f"--expiry {self.expiry:g} must be longer than --heartbeat-interval {self.heartbeat_interval:g}, else "
                "workers that are well are taken for gone. Three intervals let two heartbeats be lost."
            )
        return self
