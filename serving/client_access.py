"""How a client shows who it is: files for TLS, a bearer token, and the care that the token goes nowhere in plaintext.

Needs grpc only and knows nothing else of ours, so that every client can hold it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import grpc

#: A bearer token, or what gives one before each request.
Token: TypeAlias = str | Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files: the authorities that may have signed the server's certificate (default: gRPC's own list), and for
    mTLS the client's certificate and key. They are read when the client is made."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel; ValueError for a certificate without its key, OSError for a file that cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together; give both, or neither")
        ca, cert, key = (None if path is None else Path(path).read_bytes() for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def authorization(token: Token | None) -> list[tuple[str, str]]:
    """The metadata of one request; ValueError for what is no token."""
    if token is None:
        return []
    text = (token if isinstance(token, str) else token()).strip()
    # gRPC would refuse such a header too, with the token in its message.
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("the token is empty or holds characters that no token has; is it what its issuer gave?")
    return [("authorization", f"Bearer {text}")]


def require_private(target: str, token: Token | None, tls: Tls | None, *, allow_plaintext_token: bool) -> None:
    """ValueError when the token would cross a network in plaintext, unasked."""
    if token is None or tls is not None or allow_plaintext_token or _stays_here(target):
        return
    raise ValueError(
        f"a token would cross the network to {target} readable to all; give tls=Tls(...), or "
        "allow_plaintext_token=True if something between here and there encrypts"
    )


def _stays_here(target: str) -> bool:
    host = target.removeprefix("dns:///").rpartition(":")[0]
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or target.startswith("unix:")
