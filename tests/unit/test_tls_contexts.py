"""What a server shows and what a client pins, without a socket between them."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from chatfleet.core.errors import ConfigurationError
from chatfleet.gateway.settings import GatewaySettings
from chatfleet.http.tls import leaf_certificate, pinned_context, server_context

Pair = tuple[Path, Path]


def issued(folder: Path, authority: trustme.CA, *names: str) -> Pair:
    pair = authority.issue_cert(*names)
    certfile, keyfile = folder / f"{names[0]}.crt", folder / f"{names[0]}.key"
    for number, blob in enumerate((*pair.cert_chain_pems, authority.cert_pem)):
        blob.write_to_path(certfile, append=number > 0)
    pair.private_key_pem.write_to_path(keyfile)
    return certfile, keyfile


def self_signed(folder: Path, name: str) -> Pair:
    """As `openssl req -x509` makes it, and for no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certfile, keyfile = folder / f"{name}.crt", folder / f"{name}.key"
    certfile.write_bytes(certificate.public_bytes(Encoding.PEM))
    keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certfile, keyfile


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not sides:
            return
    raise AssertionError("the handshake does not end")


def test_a_certificate_is_known_whoever_signed_it_and_whatever_it_names(tmp_path: Path) -> None:
    for pair in (self_signed(tmp_path, "api.example.com"), issued(tmp_path, trustme.CA(), "b.example.com")):
        shake_hands(server_context(*pair), pinned_context(leaf_certificate(pair[0])))


def test_another_of_the_same_authority_or_name_is_not(tmp_path: Path) -> None:
    authority = trustme.CA()
    pinned = pinned_context(leaf_certificate(issued(tmp_path, authority, "a.example.com")[0]))
    (tmp_path / "other").mkdir()
    for other in (issued(tmp_path, authority, "b.example.com"), self_signed(tmp_path / "other", "a.example.com")):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server_context(*other), pinned)


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certfile, keyfile = self_signed(tmp_path, "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert server_context(Path("~") / certfile.name, Path("~") / keyfile.name)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder: good.crt and good.key, other.key, and what is wrong with files."""
    monkeypatch.chdir(tmp_path)
    _, keyfile = self_signed(tmp_path, "good")
    self_signed(tmp_path, "other")
    Path("cut.key").write_text("".join(keyfile.read_text().splitlines(keepends=True)[::2]))
    Path("garbled.crt").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    locked = load_pem_private_key(keyfile.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    Path("locked.key").write_bytes(locked)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("good.crt", None, ["--ssl-certfile is given without --ssl-keyfile"]),
        (None, "good.key", ["--ssl-keyfile is given without --ssl-certfile"]),
        ("absent.crt", "good.key", ["--ssl-certfile: absent.crt cannot be read: No such file"]),
        ("good.crt", "absent.key", ["--ssl-keyfile: absent.key cannot be read: No such file"]),
        ("good.crt", ".", ["--ssl-keyfile: . cannot be read", "directory"]),
        ("good.key", "good.crt", ["no certificate in good.key", "--ssl-keyfile?"]),
        ("good.crt", "good.crt", ["no private key in good.crt", "--ssl-certfile?"]),
        ("good.crt", "other.key", ["other.key is not the one of", "good.crt", "made together"]),
        ("good.crt", "locked.key", ["locked.key has a password", "openssl pkey -in locked.key"]),
        ("good.crt", "cut.key", ["cannot be used", "openssl pkey -noout -check -in cut.key"]),
        ("garbled.crt", "good.key", ["cannot be used", "openssl x509 -noout -text -in garbled.crt"]),
    ],
)
def test_wrong_files_are_named_with_what_to_do(certfile: str | None, keyfile: str | None, words: list[str]) -> None:
    given = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
    with pytest.raises(ConfigurationError) as raised:
        GatewaySettings.load(**{name: value for name, value in given.items() if value is not None}).tls()
    for word in words:
        assert word in str(raised.value)


def test_without_files_it_is_plain_http() -> None:
    assert GatewaySettings.load().tls() is None
