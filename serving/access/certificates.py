"""Certificate files of either end of TLS, checked together and read again when they change, so no restart is needed."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.settings_access import TlsSettings
from featurestore.settings_serving import InferenceSettings
from serving.access.watched import Watched

#: What OpenSSL calls mistakes that users make.
_REASONS = {
    "KEY_VALUES_MISMATCH": "the key is that of another certificate",
    "KEY_TYPE_MISMATCH": "the key is that of another certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
}


@dataclass(frozen=True, kw_only=True)
class PemFiles:
    """Where one end of TLS has its certificate, and the authorities of the other end's; each may be missing.

    A certificate has its key. `names` are what the user calls the three, `where` is where all of them are given.
    """

    cert: Path | None
    key: Path | None
    ca: Path | None
    where: str
    names: tuple[str, str, str]

    @property
    def paths(self) -> list[Path]:
        """Those that are there, in that order."""
        return [path for path in (self.cert, self.key, self.ca) if path is not None]


@dataclass(frozen=True, repr=False)
class Pem:
    """What TLS is spoken with, as PEM; never printed."""

    key: bytes | None
    chain: bytes | None
    #: Authorities of the other end's certificate; None when it is not asked for one (or for those gRPC knows).
    ca: bytes | None


def serving_files(tls: TlsSettings) -> PemFiles | None:
    """The files of the serving process's ports; None for plaintext."""
    if tls.cert is None:
        return None
    names = ("tls.cert", "tls.key", "tls.client_ca")
    return PemFiles(cert=tls.cert, key=tls.key, ca=tls.client_ca, where="[tls]", names=names)


def inference_files(inference: InferenceSettings, address: str) -> PemFiles | None:
    """The files that an address of models is spoken to with; None for plaintext, and for any unix socket."""
    if inference.tls_ca is None or address.startswith("unix:"):
        return None
    return PemFiles(
        cert=inference.tls_cert,
        key=inference.tls_key,
        ca=inference.tls_ca,
        where="[inference]",
        names=("inference.tls_cert", "inference.tls_key", "inference.tls_ca"),
    )


def watch_certificates(files: PemFiles) -> Watched[Pem]:
    """What the files hold, current. ConfigError when they are bad at the start."""
    return Watched(files.where, files.paths, partial(_checked, files))


def server_context(files: PemFiles) -> ssl.SSLContext:
    """The same for servers that speak TLS with Python's ssl, such as uvicorn; ConfigError when the files are bad.

    `refill` puts changed files into a context that is in use.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    refill(context, files)
    return context


def refill(context: ssl.SSLContext, files: PemFiles) -> None:
    """Load the files into the context; connections made from now on use them. Authorities are added, never removed."""
    cert, key, ca = files.names
    if files.cert is not None:
        try:
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(files.cert, files.key, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{cert} ({files.cert}) and {key} ({files.key}) cannot be used: {_reason(error)}; {cert} is a PEM "
                f"chain, {key} its own unencrypted key"
            ) from None
    if files.ca is not None:
        try:
            context.load_verify_locations(cafile=files.ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{ca} ({files.ca}) cannot be used: {_reason(error)}; it is a file of PEM certificates"
            ) from None


def _reason(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it is not PEM"
    return _REASONS.get(reason, reason)


def _checked(files: PemFiles, contents: Sequence[bytes]) -> Pem:
    server_context(files)
    try:
        again = [path.read_bytes() for path in files.paths]
    except OSError:
        again = []
    if again != list(contents):
        raise ConfigError("the files are being changed at this moment; tried again soon")
    read = dict(zip(files.paths, contents, strict=True))
    key, chain, ca = (None if path is None else read[path] for path in (files.key, files.cert, files.ca))
    return Pem(key, chain, ca)
