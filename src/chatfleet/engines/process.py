"""An engine in a child process: `ProcessEngine` is what the worker holds.

The child (`engines/child.py`) runs a `Backend` in one thread. Commands issued in one tick of the event loop go
to it as one frame, and each of its steps comes back as one. A child that dies, or that is silent for too long,
fails its requests, is killed if need be, and is started again with exponential back-off; the engine is not
ready meanwhile. No child outlives the worker: `child.py` says how.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from chatfleet.core.errors import ConfigurationError, EngineCrashed, EngineUnavailable, InvalidRequest
from chatfleet.core.subprocesses import restart_delay_s
from chatfleet.engines.base import Capabilities, Engine, EngineConfig, EngineStats, GenerateRequest, SamplingParams
from chatfleet.engines.child_process import Child
from chatfleet.engines.link import Link
from chatfleet.engines.registry import backend_path
from chatfleet.engines.stream import EmbedCall, Inbox, ProcessTokenStream
from chatfleet.engines.wire import Add, Command, Embed, FrameError, Load, LoadFailed, Shutdown, encode_command

logger = logging.getLogger(__name__)

_EXIT_GRACE_S: Final = 2.0
"""Between the end of the socket and the end of the process, either way round."""


def _exit_words(returncode: int | None) -> str:
    if returncode is None:
        return "closed its connection"
    return f"died (signal {-returncode})" if returncode < 0 else f"died (exit status {returncode})"


def _stall_words(link: Link) -> str:
    return f"gave no sign of life for {link.stalled_s:g} s and was killed"


class ProcessEngine(Engine):
    """Runs `config.engine` in a child process.

    Times are in seconds. `load_timeout_s` bounds loading and recovering; `stall_timeout_s` is how long the child
    may be silent, a step included, before it is killed. The first restart waits `restart_backoff_s`, each further
    one twice as long up to `restart_backoff_max_s`, and after `healthy_after_s` of service the count starts anew.
    `on_ready_change` is called on the event loop with the new `ready`. `backend` ("module:attribute") replaces the
    registry's backend; it exists for tests and embedders and no configuration reaches it. `use_guardian` has a
    guardian process end the child even where the kernel could.

    Not thread-safe: use it on the event loop that `start` ran on.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        backend: str | None = None,
        load_timeout_s: float = 600.0,
        stall_timeout_s: float = 60.0,
        restart_backoff_s: float = 0.5,
        restart_backoff_max_s: float = 30.0,
        healthy_after_s: float = 60.0,
        shutdown_grace_s: float = 5.0,
        on_ready_change: Callable[[bool], None] | None = None,
        use_guardian: bool = False,
    ) -> None:
        self._config = config
        self._backend = backend
        self._load_timeout_s = load_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._restart_backoff_s = restart_backoff_s
        self._restart_backoff_max_s = restart_backoff_max_s
        self._healthy_after_s = healthy_after_s
        self._shutdown_grace_s = shutdown_grace_s
        self._on_ready_change = on_ready_change
        self._use_guardian = use_guardian
        self._next_request_id = 0
        self._capabilities: Capabilities | None = None
        self._link: Link | None = None
        self._child: Child | None = None
        self._unavailable = "The engine has not been started."
        self._retry_at: float | None = None
        self._closing: asyncio.Event = asyncio.Event()
        self._ready_changed = asyncio.Event()
        self._announced_ready = False
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        """How often a child has been replaced."""

    # --- the Engine interface ---

    async def start(self) -> None:
        """Start the child and load the model.

        Raises ConfigurationError, with the reason, when that fails; nothing is left running then. On cancellation
        the child is ended first.
        """
        if self._supervisor is not None:
            raise RuntimeError("an engine is started once")
        path = self._backend or backend_path(self._config.engine)
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        self._supervisor = loop.create_task(self._supervise(path, started), name="chatfleet-engine-supervisor")
        try:
            await asyncio.shield(started)
        except asyncio.CancelledError:
            await self.aclose()
            if started.done() and not started.cancelled():
                started.exception()  # retrieved: the caller is gone
            raise

    @property
    def ready(self) -> bool:
        """Whether requests are taken now."""
        return self._link is not None and self._link.ready and not self._closing.is_set()

    @property
    def unavailable_reason(self) -> str | None:
        """Why the engine is not ready, for a person; None when it is."""
        return None if self.ready else self._unavailable

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is no child."""
        return self._child.pid if self._child is not None else None

    @property
    def capabilities(self) -> Capabilities:
        """Known once `start` has returned; RuntimeError before that."""
        if self._capabilities is None:
            raise RuntimeError("the engine has not been started")
        return self._capabilities

    def generate(
        self, prompt_token_ids: list[int], sampling: SamplingParams, output_token_ids: Sequence[int] = ()
    ) -> ProcessTokenStream:
        """Start generating one choice.

        Raises EngineUnavailable when not ready. The stream raises EngineCrashed when the child dies or is stuck,
        EngineUnavailable when the engine is closed, and the request's own fault.
        """
        link = self._ready_link()
        request_id = self._take_request_id()
        request = GenerateRequest(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            sampling=sampling,
            output_token_ids=list(output_token_ids),
        )
        link.send_encoded(_encoded(Add(request)))
        inbox = link.inboxes[request_id] = Inbox(link, request_id)
        return ProcessTokenStream(inbox)

    async def embed(self, prompts: Sequence[list[int]]) -> list[bytes]:
        """Embeddings in the order of `prompts`. The first fault fails the call; on that and on cancellation the
        inputs that are left are cancelled."""
        link = self._ready_link()
        if not prompts:
            return []
        call = EmbedCall(link.loop, len(prompts))
        commands = [(self._take_request_id(), prompt) for prompt in prompts]
        encoded = [_encoded(Embed(request_id, prompt)) for request_id, prompt in commands]
        for index, ((request_id, _), command) in enumerate(zip(commands, encoded, strict=True)):
            link.embeds[request_id] = (call, index)
            link.send_encoded(command)
        try:
            await call.done
        finally:
            for request_id, _ in commands:
                link.cancel(request_id)
        return call.vectors

    def stats(self) -> EngineStats:
        """The child's figures at its last report; zeros while there is no child."""
        return self._link.stats if self._link is not None else EngineStats()

    async def wait_ready(self) -> None:
        """Return when the engine is ready. Raises EngineUnavailable when it is closed, now or meanwhile."""
        while not self.ready:
            if self._closing.is_set() or self._supervisor is None or self._supervisor.done():
                raise EngineUnavailable(self._unavailable)
            await self._ready_changed.wait()

    async def aclose(self) -> None:
        """Fail what runs with EngineUnavailable, ask the child to end, kill it if it does not. Idempotent.

        When cancelled, the ending goes on in the background.
        """
        if not self._closing.is_set():
            self._unavailable = "The engine is shutting down."
            self._closing.set()
            self._announce()
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor})

    # --- requests ---

    def _ready_link(self) -> Link:
        if not self.ready or self._link is None:
            retry_after_s = 1
            if self._retry_at is not None:
                retry_after_s += max(0, math.ceil(self._retry_at - asyncio.get_running_loop().time()))
            raise EngineUnavailable(self._unavailable, headers={"retry-after": str(retry_after_s)})
        return self._link

    def _take_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id

    # --- the child's life ---

    async def _supervise(self, path: str, started: asyncio.Future[None]) -> None:
        """Keep a child alive until `aclose`, or until the first one fails to load."""
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while not self._closing.is_set():
                ready_at = math.inf
                self._unavailable = "The engine is loading its model; try again shortly."
                child = self._child = Child(loop, self._config.engine, use_guardian=self._use_guardian)
                link = Link(loop, self._link_ready_changed)
                try:
                    problem = await self._load(child, link, path)
                    if problem is None:
                        ready_at = loop.time()
                        self._serve(child, link)
                        if not started.done():
                            started.set_result(None)
                        problem = await self._watch(child, link)
                finally:
                    await self._end(child, link)
                if self._closing.is_set():
                    return
                if not started.done():
                    self._unavailable = self._start_failure(problem)
                    return
                if loop.time() - ready_at >= self._healthy_after_s:
                    failures = 0
                delay_s = restart_delay_s(failures, self._restart_backoff_s, self._restart_backoff_max_s)
                failures += 1
                self._retry_at = loop.time() + delay_s
                gist = problem.partition(":")[0]  # what follows may name paths: that is for the log
                self._unavailable = f"The engine process {gist} and is being restarted; try again shortly."
                logger.error("the engine process %s; next start in %.1f s", problem, delay_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._closing.wait()
                    return
                self._retry_at = None
                self.restarts += 1
        except Exception:
            self._unavailable = "The engine's supervision failed; restart the worker."
            logger.exception("engine supervision failed")
        finally:
            self._child = self._link = None
            if not started.done():
                started.set_exception(ConfigurationError(self._unavailable))
            self._closing.set()
            self._announce()

    async def _load(self, child: Child, link: Link, path: str) -> str | None:
        """None when the model is loaded, else what went wrong, as the end of "The engine process ..."."""
        try:
            sock = await child.start()
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
        except (OSError, RuntimeError) as exc:
            return f"could not be started: {exc}"
        link.load(Load(path, self._config))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await _first_of(link.loaded, link.lost, child.exited, closing, timeout_s=self._load_timeout_s)
        finally:
            closing.cancel()
        if self._closing.is_set():
            return "was closed while loading"
        if link.loaded.done():
            outcome = link.loaded.result()
            if isinstance(outcome, LoadFailed):
                return f"could not load: {outcome.message}"
            self._capabilities = outcome
            return None
        if link.lost.done() or child.exited.done():
            return f"{_exit_words(await self._returncode(child))} while loading"
        return f"did not load within {self._load_timeout_s:g} s"

    def _serve(self, child: Child, link: Link) -> None:
        def stalled() -> None:
            child.kill()
            problem = _stall_words(link)
            self._unavailable = f"The engine process {problem} and is being restarted; try again shortly."
            self._fail(link, problem)
            self._announce()

        link.watch(stall_timeout_s=self._stall_timeout_s, load_timeout_s=self._load_timeout_s, on_stall=stalled)
        self._link = link
        logger.info("the engine process (pid %s) is ready", child.pid)
        self._announce()

    async def _watch(self, child: Child, link: Link) -> str:
        """Until the child is gone or we close; what went wrong, as the end of "The engine process ..."."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await _first_of(link.lost, child.exited, closing)
            if self._closing.is_set():
                link.fail_all(lambda: EngineUnavailable("The engine is shutting down."))
                return "was closed"
            link.ready = False
            if link.stalled_s is None:
                self._unavailable = "The engine process died and is being restarted; try again shortly."
            self._announce()
            # What it sent before it died is read first; a process that it started may hold the socket open.
            await asyncio.wait({link.lost}, timeout=_EXIT_GRACE_S)
            if link.stalled_s is not None:
                return _stall_words(link)
            problem = _exit_words(await self._returncode(child))
            self._fail(link, problem)
            return problem
        finally:
            closing.cancel()

    async def _returncode(self, child: Child) -> int | None:
        """The socket ends a moment before the process does."""
        await asyncio.wait({child.exited}, timeout=_EXIT_GRACE_S)
        return child.exited.result() if child.exited.done() else None

    async def _end(self, child: Child, link: Link) -> None:
        link.ready = False
        grace_s = 0.0
        if self._closing.is_set() and link.stalled_s is None and not link.lost.done() and link.loaded.done():
            link.send(Shutdown())
            grace_s = self._shutdown_grace_s
        ending = asyncio.ensure_future(child.end(grace_s))
        await asyncio.wait({ending})
        link.fail_all(lambda: EngineUnavailable(self._unavailable))
        if link.abort():
            await asyncio.wait({link.lost})
        child.close()
        self._link = self._child = None

    def _fail(self, link: Link, problem: str) -> None:
        message = f"The engine process {problem} while this request was running; it is being restarted. Try again."
        link.fail_all(lambda: EngineCrashed(message))

    def _start_failure(self, problem: str) -> str:
        message = f"The engine {self._config.engine!r} did not start: its process {problem}"
        if "(signal 9)" in problem:
            return f"{message}. That is often the system running out of memory: take a smaller model or KV cache."
        if problem.startswith("did not load"):
            return f"{message}. Allow more time, or take a smaller model."
        return message if problem.startswith("could not") else f"{message}. Its output above says more."

    def _link_ready_changed(self, link: Link) -> None:
        if link is self._link:
            self._unavailable = "The engine failed and is recovering; try again shortly."
            self._announce()

    def _announce(self) -> None:
        """Tell whoever waits for it that `ready` may have changed."""
        self._ready_changed.set()
        self._ready_changed = asyncio.Event()
        if self.ready != self._announced_ready:
            self._announced_ready = self.ready
            if self._on_ready_change is not None:
                try:
                    self._on_ready_change(self._announced_ready)
                except Exception:
                    logger.exception("on_ready_change failed")


async def _first_of(*awaited: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _encoded(command: Command) -> bytes:
    try:
        return encode_command(command)
    except FrameError as exc:
        raise InvalidRequest(f"The request does not fit what the engine can be sent: {exc}.") from exc
