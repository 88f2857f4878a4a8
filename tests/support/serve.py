"""`chatfleet serve` as a process, and the processes that it has started."""

from pathlib import Path

import httpx
import psutil

from support.fleet import until
from support.processes import CommandProcess
from support.wire import PATIENCE_S, Json, user


def running(process: psutil.Process) -> bool:
    """Whether it still does something: one that has ended may wait for its parent to notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until_gone(processes: list[psutil.Process]) -> None:
    until(lambda: not any(map(running, processes)), f"the end of {processes}")


class ServeProcess(CommandProcess):
    """`chatfleet serve` on a free port; its record lies under `folder`. Made once it serves."""

    def __init__(self, *arguments: str, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        super().__init__("serve", "--port", "0", *arguments, env={"XDG_RUNTIME_DIR": str(folder), **(env or {})})

    def parts(self, command: str) -> list[psutil.Process]:
        """The processes that run `chatfleet COMMAND`, the oldest first."""
        found = []
        for child in psutil.Process(self.pid).children():
            try:
                if running(child) and child.cmdline()[3:5] == ["chatfleet", command]:
                    found.append(child)
            except psutil.NoSuchProcess:
                pass
        return sorted(found, key=lambda process: process.create_time())

    def everything(self) -> list[psutil.Process]:
        """It, and all that it has started, engines included."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]


def ask(http: httpx.Client, model: str) -> httpx.Response:
    body: Json = {"model": model, "messages": user("hello"), "max_tokens": 8}
    return http.post("/v1/chat/completions", json=body, timeout=PATIENCE_S)


def until_answered(http: httpx.Client, model: str) -> None:
    until(lambda: ask(http, model).status_code == 200, f"an answer of {model}")
