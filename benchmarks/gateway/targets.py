"""What is compared: ChatFleet's gateway, nginx, and other gateways, each before the same mock backend."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from machine import CannotRun, Cores, require
from processes import ServerProcess, free_port, get_json, post_succeeds
from workloads import KEY

CLIENT_HEADERS: Final = {"authorization": f"Bearer {KEY}"}
"""What every request carries, to whatever target."""

_ONE_REQUEST: Final = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True)
class Place:
    """Where targets are started: for which backend, on which cores, with how many processes, in which folder. `bins`
    are searched for peers' commands before PATH."""

    backend_port: int
    cores: Cores
    processes: int
    folder: Path
    bins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Target:
    """A server that is measured. `process` and its descendants are what it costs."""

    name: str
    version: str
    port: int
    process: ServerProcess


@contextmanager
def mock_backend(program: Path, cores: Cores, folder: Path) -> Iterator[int]:
    """The port of a running one."""
    port = free_port()
    with ServerProcess("mock backend", [str(program), str(port)], [cores.load], folder) as process:
        process.until(lambda: get_json(port, "/v1/models") is not None, "an answer")
        yield port


@contextmanager
def chatfleet(place: Place) -> Iterator[Target]:
    """The gateway of the interpreter that runs this, with a controller of its own that knows the backend."""
    from chatfleet import __version__

    command = [sys.executable, "-P", "-m", "chatfleet"]
    # So seldom that the controller's probes are not measured.
    registry = ["--expiry", "80000", "--heartbeat-interval", "1000", "--state-file", str(place.folder / "state.json")]
    with ExitStack() as stack:
        controller = stack.enter_context(
            ServerProcess(
                "controller", [*command, "controller", "--port", "0", *registry], [place.cores.load], place.folder
            )
        )
        controller_url = _announced(controller, r"Controller on (http://\S+)")
        _register(command, f"http://127.0.0.1:{place.backend_port}", controller_url)
        options = ["--port", "0", "--processes", str(place.processes), "--controller-url", controller_url]
        environment = {"CHATFLEET_API_KEYS": KEY}
        gateway = stack.enter_context(
            ServerProcess("chatfleet", [*command, "gateway", *options], place.cores.gateways, place.folder, environment)
        )
        port = int(_announced(gateway, r"Serving mock on http://127\.0\.0\.1:(\d+)/v1"))
        yield _answering(Target("chatfleet", __version__, port, gateway))


def _register(command: Sequence[str], server_url: str, controller_url: str) -> None:
    finished = subprocess.run(
        [*command, "register", server_url, "--controller-url", controller_url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if finished.returncode != 0:
        raise CannotRun(f"The mock backend cannot be registered: {finished.stdout}")


def _announced(process: ServerProcess, pattern: str) -> str:
    process.until(lambda: re.search(pattern, process.log()) is not None, "the line that says where it listens")
    found = re.search(pattern, process.log())
    assert found is not None
    return found[1]


@contextmanager
def nginx(place: Place) -> Iterator[Target]:
    """It checks no key, keeps connections, buffers nothing: as little as a proxy can do."""
    program = peer_command("nginx", place.bins)
    folder = place.folder / "nginx"
    folder.mkdir()
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(f"""
worker_processes {place.processes}; daemon off; pid {folder}/pid; error_log {folder}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 100000000; tcp_nodelay on;
    {temporary}
    upstream backend {{
        server 127.0.0.1:{place.backend_port}; keepalive 2000; keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 600;
        }}
    }}
}}
""")
    said = subprocess.run([program, "-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    command = [program, "-e", str(folder / "error.log"), "-c", str(configuration)]
    with ServerProcess("nginx", command, place.cores.gateways, place.folder) as process:
        yield _answering(Target("nginx", said.strip().rpartition("/")[2], port, process))


@contextmanager
def sglang_router(place: Place) -> Iterator[Target]:
    """With its default policy; it checks no key."""
    program = peer_command("sglang-router", place.bins)
    port = free_port()
    command = [program, "launch", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warn"]
    command += ["--worker-urls", f"http://127.0.0.1:{place.backend_port}", "--prometheus-port", str(free_port())]
    with ServerProcess("sglang-router", command, place.cores.gateways, place.folder) as process:
        yield _answering(Target("sglang-router", _version_beside(program, "sglang-router"), port, process))


@contextmanager
def litellm(place: Place) -> Iterator[Target]:
    """Its proxy with a master key and without a database, as its documentation advises for production."""
    program = peer_command("litellm", place.bins)
    port = free_port()
    configuration = place.folder / "litellm.yaml"
    configuration.write_text(f"""
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: http://127.0.0.1:{place.backend_port}/v1
      api_key: none
litellm_settings: {{ set_verbose: false, json_logs: true, telemetry: false }}
general_settings: {{ master_key: {KEY} }}
""")
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--config", str(configuration)]
    command += ["--num_workers", str(place.processes), "--telemetry", "False"]
    # Else it fetches its price list from the internet at each start.
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with ServerProcess("litellm", command, place.cores.gateways, place.folder, environment) as process:
        yield _answering(Target("litellm", _version_beside(program, "litellm"), port, process))


PEERS: Final[dict[str, Callable[[Place], AbstractContextManager[Target]]]] = {
    "nginx": nginx,
    "sglang-router": sglang_router,
    "litellm": litellm,
}
_PACKAGES: Final = {"sglang-router": "sglang-router", "litellm": "'litellm[proxy]'"}


def installed_peers(bins: Sequence[Path]) -> list[str]:
    """nginx, which is the baseline, and what else is there."""
    return [name for name in PEERS if name == "nginx" or _find(name, bins)]


def peer_command(name: str, bins: Sequence[Path]) -> str:
    """The path of a peer's command. Raises CannotRun when it is not installed."""
    if name == "nginx":
        return require("nginx", "Install it (apt install nginx-light; it need not run), or do without: --peers none.")
    found = _find(name, bins)
    if found is None:
        raise CannotRun(
            f"{name} is neither on PATH nor in an environment given with --venv. Install it into one of its own: "
            f"python -m venv /tmp/{name} && /tmp/{name}/bin/pip install {_PACKAGES[name]}, then --venv /tmp/{name}"
        )
    return found


def _find(command: str, bins: Sequence[Path]) -> str | None:
    return next((found for path in (*map(str, bins), None) if (found := shutil.which(command, path=path))), None)


def _version_beside(program: str, package: str) -> str:
    """The version of a package in the environment that a command belongs to."""
    finished = subprocess.run(
        [Path(program).with_name("python"), "-c", f"import importlib.metadata as m; print(m.version({package!r}))"],
        capture_output=True,
        text=True,
    )
    return finished.stdout.strip() or "of unknown version"


def _answering(target: Target) -> Target:
    """The target, as soon as it answers a request with the key."""
    target.process.until(
        lambda: post_succeeds(target.port, "/v1/chat/completions", _ONE_REQUEST, CLIENT_HEADERS), "an answer"
    )
    return target
