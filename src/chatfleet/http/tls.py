"""TLS: what a server shows, and what a client on the same machine trusts."""

import re
import ssl
from pathlib import Path

from chatfleet.core.errors import ConfigurationError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def server_context(certfile: Path, keyfile: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate (chain) and key, both PEM.

    Raises ConfigurationError when a file cannot be read or is not what it should be, the key has a password, or the
    two do not belong together. Reads files.
    """
    leaf_certificate(certfile)
    if "PRIVATE KEY-----" not in _text(keyfile, "--ssl-keyfile"):
        raise ConfigurationError(
            f"--ssl-keyfile: there is no private key in {keyfile}. It must be PEM, with a line BEGIN PRIVATE KEY; "
            "is it the certificate, which goes to --ssl-certfile?"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile.expanduser(), keyfile.expanduser(), lambda: _refuse_password(keyfile))
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"The key in {keyfile} is not the one of the certificate in {certfile}. Give the two that were made "
                "together; the server's certificate must be the first of its file."
            ) from exc
        raise ConfigurationError(
            f"--ssl-certfile {certfile} and --ssl-keyfile {keyfile} cannot be used: {exc.reason or exc}. Look at them: "
            f"openssl x509 -noout -text -in {certfile}; openssl pkey -noout -check -in {keyfile}"
        ) from exc
    return context


def leaf_certificate(certfile: Path) -> str:
    """The server's own certificate (PEM), the first of the file. Raises ConfigurationError when there is none."""
    found = _CERTIFICATE.search(_text(certfile, "--ssl-certfile"))
    if found is None:
        raise ConfigurationError(
            f"--ssl-certfile: there is no certificate in {certfile}. It must be PEM, with a line BEGIN CERTIFICATE; "
            "is it the key, which goes to --ssl-keyfile?"
        )
    return found[0] + "\n"


def pinned_context(certificate: str) -> ssl.SSLContext:
    """For a client that knows the one certificate (PEM) its server has, whoever signed it and whatever it names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # it may name the public address, and the server is reached by a local one
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust the certificate itself, not who signed it
    context.load_verify_locations(cadata=certificate)
    return context


def _text(path: Path, flag: str) -> str:
    try:
        return path.expanduser().read_text(encoding="latin-1")
    except OSError as exc:
        raise ConfigurationError(f"{flag}: {path} cannot be read: {exc.strerror or exc}.") from exc


def _refuse_password(keyfile: Path) -> str:
    raise ConfigurationError(
        f"--ssl-keyfile: the key in {keyfile} has a password, for which a server that starts by itself cannot ask. "
        f"Write it without one, readable by the server's user only: (umask 077; openssl pkey -in {keyfile} -out KEY)"
    )
