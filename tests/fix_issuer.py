"""A real issuer of JWTs: an HTTP server on this machine that publishes the keys of the moment, or misbehaves."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from featurestore.clock import SystemClock

NAME, AUDIENCE = "https://issuer.example", "featurestore"


class SigningKey:
    """A key pair of the issuer."""

    def __init__(self, kid: str, algorithm: str = "ES256", rsa_bits: int = 2048) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any
        kind: Any
        if algorithm.startswith(("RS", "PS")):
            self.private, kind = rsa.generate_private_key(65537, rsa_bits), RSAAlgorithm
        elif algorithm.startswith("ES"):
            self.private, kind = ec.generate_private_key(ec.SECP256R1()), ECAlgorithm
        else:
            self.private, kind = ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm
        self.jwk = {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": kid, "use": "sig"}

    @property
    def private_pem(self) -> bytes:
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that passes, unless `claims` or `headers` say otherwise; None takes one away."""
        now = int(SystemClock().now().timestamp())
        all_claims = {"iss": NAME, "aud": AUDIENCE, "sub": "pricing", "iat": now, "exp": now + 300} | claims
        payload = {name: value for name, value in all_claims.items() if value is not None}
        all_headers = {"kid": self.kid} | (headers or {})
        with warnings.catch_warnings(action="ignore", category=jwt.InsecureKeyLengthWarning):
            kept = {name: value for name, value in all_headers.items() if value is not None}
            return jwt.encode(payload, self.private, self.algorithm, kept)


class Issuer:
    """What it publishes, and how often it was asked."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/keys.json"
        self.keys: list[SigningKey] = []
        self.requests = 0
        #: Cleared, it keeps who asks waiting.
        self.answers = threading.Event()
        self.answers.set()
        #: Bytes to answer instead of the keys; a status, except at url?elsewhere.
        self.body: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        #: A wait before each byte.
        self.drip_s = 0.0

    def content(self) -> bytes:
        return json.dumps({"keys": [key.jwk for key in self.keys]}).encode() if self.body is None else self.body


@contextmanager
def issuing(*keys: SigningKey) -> Iterator[Issuer]:
    """A running issuer that publishes these keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests += 1
            issuer.answers.wait()
            self.send_response(200 if self.path.endswith("?elsewhere") else issuer.status)
            for name, value in issuer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader may have given up
                for part in [issuer.content()] if not issuer.drip_s else issuer.content().decode():
                    time.sleep(issuer.drip_s)
                    self.wfile.write(part if isinstance(part, bytes) else part.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(server.server_address[1])
        issuer.keys = [*keys]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield issuer
        finally:
            issuer.answers.set()
            server.shutdown()
            thread.join()
