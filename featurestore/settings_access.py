"""The sections [auth] and [tls]: who may call the serving process, and over what. They hold paths, never secrets."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, StringConstraints, model_validator
from pydantic import Field as Setting

from featurestore.loopback import is_loopback
from featurestore.settings_section import OfFiles, listed

#: Signatures that only the issuer can make. Shared secrets (HS256, ...) and `none` cannot be chosen.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]

_OF_JWT = ("jwt_", "jwks_")
_Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class TlsSettings(OfFiles):
    """TLS of the serving process; the files are read again when they change."""

    #: PEM file: the server's certificate, then its intermediates. Without it the server speaks plaintext.
    cert: Path | None = None
    #: PEM file: the key of the certificate, not encrypted.
    key: Path | None = None
    #: PEM file: authorities of clients' certificates. With it every client must show a certificate (mTLS).
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together; set both, or neither for plaintext")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca asks clients for certificates, which only TLS carries; set cert and key too")
        return self


class AuthSettings(OfFiles):
    """Who may call the serving process. Off without `grants`; with it, what is not granted is denied."""

    #: TOML file: what each principal and role may do; read again when it changes.
    grants: Path | None = None
    #: TOML file: digests of bearer tokens, by name; read again when it changes.
    tokens: Path | None = None
    #: `iss` of accepted JWTs. JWTs need this, jwt_audience, and one of jwks_url and jwks_path.
    jwt_issuer: _Text | None = None
    #: What `aud` of accepted JWTs is or holds.
    jwt_audience: _Text | None = None
    #: Where the issuer publishes its keys: https, or http on this machine.
    jwks_url: _Text | None = None
    #: File of the issuer's keys instead, as JWKS; read again when it changes.
    jwks_path: Path | None = None
    #: How often the keys of jwks_url are read again, so that a withdrawn key ends.
    jwks_refresh_s: float = Setting(default=300.0, ge=10, le=86_400)
    #: Longest time that one reading of jwks_url may take.
    jwks_timeout_s: float = Setting(default=5.0, gt=0, le=60)
    #: Signatures that are accepted; a key is used only for those of its own kind.
    jwt_algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(listed), Setting(min_length=1)] = (
        "RS256",
        "ES256",
        "EdDSA",
    )
    #: How far the clocks of issuer and server may differ.
    jwt_leeway_s: float = Setting(default=30.0, ge=0, le=300)
    #: The claim that names the principal.
    jwt_subject_claim: _Text = "sub"
    #: The claim that holds roles: a list, or words in one text; a.b looks inside a.
    jwt_roles_claim: _Text | None = None

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """Without the settings of JWTs where none are accepted: they would be refused if set."""
        yield from ((name, value) for name, value in super().__iter__() if self.jwt or not name.startswith(_OF_JWT))

    @property
    def jwt(self) -> bool:
        """Whether JWTs are accepted."""
        return self.jwt_issuer is not None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        keys = [name for name in ("jwks_url", "jwks_path") if getattr(self, name) is not None]
        if self.jwt and (self.jwt_audience is None or len(keys) != 1):
            raise ValueError("JWTs need jwt_issuer, jwt_audience and one of jwks_url and jwks_path; set all three")
        own = sorted(name for name in self.model_fields_set if name.startswith(_OF_JWT))
        if not self.jwt and own:
            raise ValueError(f"{', '.join(own)} say nothing without jwt_issuer; set it, or remove them")
        if self.jwks_url is not None:
            _check_url(self.jwks_url)
        if self.grants is None and (self.jwt or self.tokens is not None):
            raise ValueError("callers can show who they are, but nothing is granted to anyone; set grants to a file")
        return self


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("jwks_url holds a user name or a password; keys are public, remove it")
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise ValueError("jwks_url is not https; whoever can alter the keys can sign tokens, use https://...")


def access_fault(auth: AuthSettings, tls: TlsSettings) -> str:
    """What keeps the two sections from working together, or nothing."""
    if auth.grants is not None and auth.tokens is None and not auth.jwt and tls.client_ca is None:
        return (
            "auth.grants says what callers may do, but none can show who it is; "
            "set auth.tokens, auth.jwt_issuer or tls.client_ca"
        )
    return ""
