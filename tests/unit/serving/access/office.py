"""What an operator has and what clients try, for tests of a server's doors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from featurestore.settings_access import AuthSettings, TlsSettings
from featurestore_client import FeatureClient, RequestFailed
from featurestore_client.access import Tls
from serving.access.tokens import new_token, token_entry
from serving.server import ServeOptions
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import Running, server

KEYS = {"origin": ["JFK"]}
GRANTS = """
[token.pricing]
read = ["airport_*"]
views = ["weather"]
[token.planning]
views = ["weather", "delays"]
[token.operator]
operate = true
[jwt.alice]
read = ["airport_now"]
[role.everything]
read = ["*"]
[cert."pricing.internal"]
read = ["airport_now"]
"""


TOKENS = ("pricing", "planning", "operator", "nobody")


@dataclass
class Office:
    """What an operator has: files, tokens and authorities."""

    folder: Path
    tokens: dict[str, str] = field(default_factory=lambda: {name: new_token() for name in TOKENS})
    ca: trustme.CA = field(default_factory=trustme.CA)
    client_ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.write("grants.toml", GRANTS)
        self.write("tokens.toml", "".join(token_entry(name, token, []) for name, token in self.tokens.items()))
        self.certify(self.ca)
        self.write("client_ca.pem", self.client_ca.cert_pem.bytes())

    def write(self, name: str, content: str | bytes) -> Path:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self.folder / name

    def certify(self, ca: trustme.CA) -> None:
        """Another certificate for the server, signed by `ca`."""
        self.write("ca.pem", ca.cert_pem.bytes())
        self.identity(ca.issue_cert("localhost", "127.0.0.1"), "server")

    def identity(self, issued: trustme.LeafCert, name: str) -> tuple[Path, Path]:
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return self.write(f"{name}.pem", chain), self.write(f"{name}.key", issued.private_key_pem.bytes())

    def auth(self, **more: Any) -> AuthSettings:
        return AuthSettings(grants=self.folder / "grants.toml", tokens=self.folder / "tokens.toml", **more)

    def tls(self, *, mutual: bool = False) -> TlsSettings:
        ca = self.folder / "client_ca.pem" if mutual else None
        return TlsSettings(cert=self.folder / "server.pem", key=self.folder / "server.key", client_ca=ca)

    def serve(self, backend: Backend, **sections: Any) -> contextlib.AbstractContextManager[Running]:
        sections = {"auth": self.auth(), "tls": self.tls()} | sections
        return server(backend.engine(), ServeOptions(port=0, poll_s=0.05, drain_s=5.0, **sections))

    def client(self, target: str, token: Any = None, issued: trustme.LeafCert | None = None) -> FeatureClient:
        cert, key = self.identity(issued, "client") if issued else (None, None)
        return FeatureClient(target, tls=Tls(ca=self.folder / "ca.pem", cert=cert, key=key), token=token, timeout_s=10)


def refusal(ask: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(RequestFailed) as caught:
        ask()
    return caught.value.code, caught.value.message


def lets_in(client: FeatureClient, service: str | list[str] = "airport_now") -> bool:
    try:
        return len(client.get_online_features(service, KEYS)) == 1
    except RequestFailed as error:
        if error.code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise
        return False
