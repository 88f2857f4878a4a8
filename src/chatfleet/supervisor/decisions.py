"""What is to be done when a part starts, tells of itself, ends, or should stop. Decided here, done elsewhere.

Times are in seconds on one clock of the caller's, and passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from chatfleet.core.subprocesses import restart_delay_s
from chatfleet.supervisor.channel import Announcement
from chatfleet.supervisor.parts import STOP_ORDER, Part, Role

FIRST_RESTART_S: Final = 0.5
MAX_RESTART_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
MISCONFIGURED: Final = 2
"""The exit status of a component that cannot start as it was configured, and ours when one of the parts has it."""
KILLED: Final = 130
"""Our exit status when nothing was stopped in order; a shell's for a command that Ctrl-C ended."""


@dataclass(frozen=True, slots=True)
class Start:
    part: Part


@dataclass(frozen=True, slots=True)
class Terminate:
    part: Part


@dataclass(frozen=True, slots=True)
class Kill:
    part: Part


Action = Start | Terminate | Kill


@dataclass(frozen=True, slots=True)
class Expected:
    """It ended because it should."""


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """It cannot start as it was configured: everything stops."""


@dataclass(frozen=True, slots=True)
class Restart:
    delay_s: float


Ending = Expected | Misconfigured | Restart


@dataclass(slots=True)
class PartState:
    """What is known of a part. `announcement` is the last of its present life, `ready_at` when the first one came;
    `start_at` is when to start it, None while it runs."""

    part: Part
    start_at: float | None
    started_at: float
    announcement: Announcement | None = None
    ready_at: float | None = None
    was_ready: bool = False
    failures: int = 0
    kill_at: float | None = None
    stopping: bool = False

    @property
    def running(self) -> bool:
        return self.start_at is None


class Supervision:
    """The state of all parts, and what follows from it.

    `due` says what to do now and takes it as done; the caller then tells what came of it.
    """

    def __init__(self, parts: Sequence[Part], now: float) -> None:
        self.states = {part.name: PartState(part, start_at=now, started_at=now) for part in parts}
        self.status = 0
        self.stopping = self.killed = False

    @property
    def done(self) -> bool:
        return self.stopping and not any(state.running for state in self.states.values())

    def announcements(self, role: Role) -> list[Announcement] | None:
        """The last one of every part with this role; None while one of them has made none in its present life."""
        announcements = [state.announcement for state in self.states.values() if state.part.role is role]
        known = [announcement for announcement in announcements if announcement is not None]
        return known if len(known) == len(announcements) else None

    def due(self, now: float) -> list[Action]:
        if not self.stopping:
            return self._starts(now)
        running = [state for state in self.states.values() if state.running]
        actions: list[Action] = []
        for state in running:
            if state.kill_at is not None and state.kill_at <= now:
                state.kill_at = None
                actions.append(Kill(state.part))
        first = min((STOP_ORDER.index(state.part.role) for state in running), default=None)
        for state in running:
            if not state.stopping and STOP_ORDER.index(state.part.role) == first:
                state.stopping, state.kill_at = True, now + state.part.grace_s
                actions.append(Terminate(state.part))
        return actions

    def _starts(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for state in self.states.values():
            if state.start_at is not None and state.start_at <= now:
                state.start_at, state.started_at = None, now
                actions.append(Start(state.part))
        return actions

    def next_due(self) -> float | None:
        """When `due` has something new to say, if nothing happens before; None: not at all."""
        times = (state.kill_at if self.stopping else state.start_at for state in self.states.values())
        return min((time for time in times if time is not None), default=None)

    def announced(self, name: str, announcement: Announcement, now: float) -> bool:
        """A part has told where and what it serves. Whether it is back from a failure by this."""
        state = self.states[name]
        first = state.ready_at is None
        back = first and state.was_ready
        state.announcement, state.was_ready = announcement, True
        if first:
            state.ready_at = now
        return back

    def ended(self, name: str, returncode: int | None, now: float) -> Ending:
        """A part is no more; `returncode` is None when it could not be started at all."""
        state = self.states[name]
        was_ready, ready_at = state.was_ready, state.ready_at
        state.announcement = state.ready_at = state.kill_at = None
        if self.stopping:
            state.start_at = now  # never due
            return Expected()
        if returncode == MISCONFIGURED and not was_ready:
            state.start_at = now
            self.stop(MISCONFIGURED)
            return Misconfigured()
        if ready_at is not None and now - ready_at >= HEALTHY_AFTER_S:
            state.failures = 0
        delay_s = restart_delay_s(state.failures, FIRST_RESTART_S, MAX_RESTART_S)
        state.failures += 1
        state.start_at = now + delay_s
        return Restart(delay_s)

    def stop(self, status: int = 0) -> None:
        """Stop in order from now on, and end with this status. The first status stands."""
        if not self.stopping:
            self.stopping, self.status = True, status

    def kill(self) -> None:
        """Everything that runs is being killed by the caller: nothing more is stopped in order."""
        self.stopping, self.killed, self.status = True, True, self.status or KILLED
        for state in self.states.values():
            state.stopping, state.kill_at = True, None
