"""The certificate files of [tls], checked together and read again when they change, so that no restart is needed."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.errors import ConfigError
from featurestore.settings_access import TlsSettings
from serving.access.watched import Watched


@dataclass(frozen=True, repr=False)
class Pem:
    """What TLS is spoken with, as PEM; never printed."""

    key: bytes
    chain: bytes
    #: Authorities of clients' certificates; None when clients need none.
    client_ca: bytes | None


def watch_certificates(tls: TlsSettings) -> Watched[Pem] | None:
    """The certificate, key and authorities, current; None for plaintext. ConfigError when they are bad at the start."""
    if tls.cert is None or tls.key is None:
        return None
    paths = [tls.cert, tls.key, *([tls.client_ca] if tls.client_ca else [])]
    return Watched("[tls]", paths, lambda contents: _checked(tls, contents))


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """The same for servers that speak TLS with Python's ssl, such as uvicorn; ConfigError when the files are bad.

    `refill` puts changed files into a context that is in use.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    refill(context, tls)
    return context


def refill(context: ssl.SSLContext, tls: TlsSettings) -> None:
    """Load the files into the context; connections made from now on use them. Authorities are added, never removed."""
    assert tls.cert is not None, "only a server with a certificate speaks TLS"
    try:
        # Without a password, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
        if tls.client_ca is not None:
            context.load_verify_locations(cafile=tls.client_ca)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it is not PEM"
        raise ConfigError(
            f"tls.cert ({tls.cert}), tls.key and tls.client_ca cannot be used: {reason}; cert is a PEM chain, key its "
            "own unencrypted key, client_ca PEM certificates"
        ) from None


def _checked(tls: TlsSettings, contents: Sequence[bytes]) -> Pem:
    server_context(tls)
    chain, key, *client_ca = contents
    try:
        again = [path.read_bytes() for path in (tls.cert, tls.key, tls.client_ca) if path is not None]
    except OSError:
        again = []
    if again != list(contents):
        raise ConfigError("the files are being changed at this moment; tried again soon")
    return Pem(key, chain, client_ca[0] if client_ca else None)
