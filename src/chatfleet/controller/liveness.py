"""When silent workers are removed: at their deadline, by one timer."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from chatfleet.controller.registry import Registry
from chatfleet.core.fleet import FleetChange

logger = logging.getLogger(__name__)

_LATE_S: Final = 0.5
"""A timer that is this late was not held up by work: the process was stopped, or the machine was."""


class ExpiryTimer:
    """Wakes when the longest silent worker of `registry` expires. `publish` gets the changes that this makes.

    When the process itself was stopped, everybody has `grace_s` more: their heartbeats may lie unread in its sockets.
    """

    def __init__(self, registry: Registry, publish: Callable[[list[FleetChange]], None], *, grace_s: float) -> None:
        self._registry = registry
        self._grace_s = grace_s
        self._publish = publish
        self._timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """To be called whenever a worker was heard of. Deadlines only move away, so an armed timer is early enough."""
        deadline = self._registry.next_deadline()
        if self._timer is None and deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._wake, deadline)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, due: float) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        late_s = now - due
        if late_s > _LATE_S:
            logger.warning("the controller stood still for %.1f s; no worker is blamed for that", late_s)
            self._registry.excuse(late_s + self._grace_s)
        changes = self._registry.expire(now)
        for change in changes:
            if change.type == "gone":
                logger.warning("worker %s expired: silent for %g s", change.worker_id, self._registry.expiry_s)
        self._publish(changes)
        self.arm()
