"""https at the gateway's port: what clients see, what is refused, and how `chatfleet chat` knows its own fleet."""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import trustme

from support.command import refused, run
from support.fleet import until
from support.processes import GUARDED, CommandProcess, ControllerProcess, WorkerProcess
from support.serve import ServeProcess, ask
from support.wire import PATIENCE_S, RawConnection, chat_texts, chunks, user

SIMULATED = ("--engine", "simulated")


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, as files, and the file of who signed it."""

    certfile: Path
    keyfile: Path
    authority: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--ssl-certfile", str(self.certfile), "--ssl-keyfile", str(self.keyfile))

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


def make_pair(folder: Path, *names: str) -> Pair:
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(folder / "server.crt", folder / "server.key", folder / "authority.crt")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(pair.certfile, append=number > 0)
    issued.private_key_pem.write_to_path(pair.keyfile)
    authority.cert_pem.write_to_path(pair.authority)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of 127.0.0.1 and localhost, signed by an authority that nobody knows."""
    return make_pair(tmp_path_factory.mktemp("pair"), "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def controller() -> Iterator[ControllerProcess]:
    with (
        ControllerProcess("--expiry", "600", "--heartbeat-interval", "1") as controller,
        WorkerProcess("m", *SIMULATED, "--sim-itl-ms", "5", "--controller-url", controller.url),
    ):
        yield controller


@pytest.fixture(scope="module", params=["1", "2"])
def gateway(request: pytest.FixtureRequest, controller: ControllerProcess, pair: Pair) -> Iterator[CommandProcess]:
    """Of one process, and of two."""
    options = ("--processes", request.param, *pair.options)
    with CommandProcess("gateway", "--port", "0", "--controller-url", controller.url, *options) as process:
        until(lambda: "Serving m on https://" in process.output, "the model")
        yield process
        assert process.alive()
        assert "Traceback" not in process.output, process.output


@pytest.fixture
def https(gateway: CommandProcess, pair: Pair) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, verify=pair.trust(), timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.long
def test_what_is_announced_is_an_https_url(gateway: CommandProcess, https: httpx.Client) -> None:
    assert gateway.url.startswith("https://127.0.0.1:")
    assert ask(https, "m").status_code == 200
    assert https.get("/health").status_code == 200


def test_a_streamed_answer_comes_over_tls_as_it_is_made(https: httpx.Client) -> None:
    body = {"model": "m", "messages": user("hello"), "max_tokens": 64, "ignore_eos": True, "temperature": 0}
    text = https.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert chat_texts(chunks(https.post("/v1/chat/completions", json={**body, "stream": True})))[0] == text
    with https.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        reads = [read for read in response.iter_raw() if read]
    assert len(reads) > 1 and b"[DONE]" not in reads[0]


def test_a_large_body_comes_over_tls(https: httpx.Client) -> None:
    answer = https.post("/v1/tokenize", json={"model": "m", "prompt": "x" * 3_000_000})
    assert answer.json()["count"] == 3_000_000


def test_who_does_not_trust_the_certificate_gets_no_connection(gateway: CommandProcess) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{gateway.url}/health")


def test_curl_takes_the_certificate(gateway: CommandProcess, pair: Pair) -> None:
    command = ["curl", "--silent", "--show-error", "--cacert", str(pair.authority), f"{gateway.url}/v1/models"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode == 0, finished
    assert json.loads(finished.stdout)["data"][0]["id"] == "m"


def test_the_official_client_takes_it_as_the_greeting_says(
    gateway: CommandProcess, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.authority))
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=8, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def spoken(url: str, context: ssl.SSLContext) -> str | None:
    """The version of TLS that a client with this context gets to speak."""
    parts = urlsplit(url)
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.version()


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(gateway: CommandProcess, pair: Pair) -> None:
    assert spoken(gateway.url, pair.trust()) == "TLSv1.3"
    older = pair.trust()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    assert spoken(gateway.url, older) == "TLSv1.2"
    oldest = pair.trust()
    oldest.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL 3 would not even offer it
    oldest.minimum_version = oldest.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        spoken(gateway.url, oldest)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(600),
        b"\x00" * 100_000,
        b"",
    ],
)
def test_what_is_not_tls_is_cut_off_without_harm(gateway: CommandProcess, https: httpx.Client, sent: bytes) -> None:
    before = gateway.output
    with RawConnection(gateway.url) as connection:
        connection.send(sent)
        connection.sock.shutdown(socket.SHUT_WR)
        try:
            answer = connection.sock.recv(65536)
        except ConnectionResetError:
            answer = b""
        assert b"HTTP/" not in answer
    assert ask(https, "m").status_code == 200
    assert gateway.output == before  # whoever scans ports does not fill the log


def test_a_client_that_leaves_in_the_handshake_or_a_stream_does_no_harm(
    gateway: CommandProcess, https: httpx.Client, pair: Pair
) -> None:
    body = {"model": "m", "messages": user("hello"), "stream": True, "max_tokens": 2000, "ignore_eos": True}
    parts = urlsplit(gateway.url)
    for _ in range(5):
        with https.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_raw())
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S).close()
    assert ask(https, "m").status_code == 200


# --- chatfleet serve, and who finds it ---


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of another name than the one by which it is reached here."""
    return make_pair(tmp_path_factory.mktemp("foreign"), "api.example.com")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, foreign: Pair) -> Iterator[ServeProcess]:
    options = (*SIMULATED, "--processes", "2", *foreign.options)
    with ServeProcess(*options, "m", folder=tmp_path_factory.mktemp("runtime")) as process:
        yield process


def chat(serve: ServeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GUARDED), "chat", *arguments],
        input="hello\n/exit\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", "XDG_RUNTIME_DIR": str(serve.folder)},
    )


@pytest.mark.long
def test_serve_greets_with_https_and_how_to_trust_it(serve: ServeProcess, foreign: Pair) -> None:
    assert serve.url.startswith("https://127.0.0.1:")
    assert f"curl {serve.url}/v1/chat/completions" in serve.output
    assert f"SSL_CERT_FILE={foreign.certfile}" in serve.output


@pytest.mark.long
def test_chat_knows_the_certificate_of_its_own_fleet(serve: ServeProcess) -> None:
    for arguments in ((), ("--base-url", f"{serve.url}/v1")):
        finished = chat(serve, *arguments)
        assert finished.returncode == 0, finished
        assert f"at {serve.url}/v1" in finished.stdout and "Error" not in finished.stdout, finished


def test_chat_trusts_it_at_that_address_only(serve: ServeProcess) -> None:
    port = urlsplit(serve.url).port
    finished = chat(serve, "--base-url", f"https://localhost:{port}/v1")
    assert finished.returncode == 1, finished
    assert "certificate" in finished.stdout and "SSL_CERT_FILE" in finished.stdout, finished


@pytest.mark.long
def test_another_server_there_is_not_taken_for_it(serve: ServeProcess, gateway: CommandProcess) -> None:
    (record,) = serve.folder.glob("chatfleet/serve-*/record.json")
    written = record.read_text()
    try:
        record.write_text(written.replace(serve.url, gateway.url))  # in place: the lock is on the file
        finished = chat(serve)
    finally:
        record.write_text(written)
    assert finished.returncode == 1 and f"The certificate of {gateway.url}" in finished.stdout, finished


def test_status_finds_it_too(serve: ServeProcess) -> None:
    finished = run("status", "--json", env={"XDG_RUNTIME_DIR": str(serve.folder)})
    assert finished.returncode == 0, finished
    (report,) = json.loads(finished.stdout)["controllers"]
    assert [worker["model_names"] for worker in report["status"]["workers"]] == [["m"]]


def test_no_key_is_in_the_record_or_the_log(serve: ServeProcess, foreign: Pair) -> None:
    (record,) = serve.folder.glob("chatfleet/serve-*/record.json")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    for text in (record.read_text(), serve.output):
        assert "PRIVATE KEY" not in text


# --- what is configured wrongly ---


@pytest.mark.parametrize("command", [("gateway",), ("gateway", "--processes", "2"), ("serve", *SIMULATED)])
def test_a_wrong_key_is_one_message_before_anything_starts(
    command: tuple[str, ...], pair: Pair, foreign: Pair, tmp_path: Path
) -> None:
    files = ("--ssl-certfile", str(pair.certfile), "--ssl-keyfile", str(foreign.keyfile))
    finished = run(*command, "--port", "0", *files, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    refused(finished, str(pair.certfile), str(foreign.keyfile), "made together")
    assert not list(tmp_path.glob("chatfleet/*"))
