"""Who is it? From what came with a request to a principal. Both gRPC and REST ask here."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from featurestore.errors import Unauthenticated
from featurestore.settings_access import AuthSettings
from serving.access.grants import Subject, watch_grants
from serving.access.principal import ANYONE, Principal
from serving.access.tokens import Identity, Refused, watch_tokens

log = logging.getLogger(__name__)

#: More than any token needs; gRPC takes 8 KiB of headers.
AUTHORIZATION_CHARS_MAX = 8_192
_NAMELESS = "say who you are: send the header `authorization: Bearer TOKEN`"


class Door:
    """Tells who calls. Belongs to one event loop; `start` it there before the first request.

    Raises ConfigError for files that cannot be used.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._grants = watch_grants(settings.grants) if settings.grants else None
        self._tokens = watch_tokens(settings.tokens) if settings.tokens else None
        self._issuer = None
        if settings.jwt:
            from serving.access.issuer import Issuer  # PyJWT is an extra

            self._issuer = Issuer(settings)

    @property
    def locked(self) -> bool:
        """Whether anything is denied to anybody."""
        return self._grants is not None

    async def start(self) -> None:
        """Read the issuer's keys, if they can be had; without them the first JWTs wait for them."""
        if self._issuer is not None:
            await self._issuer.start()

    async def authenticate(self, authorization: Sequence[str], certificate: Sequence[str] = ()) -> Principal:
        """Who sent these values of the `authorization` header, over a connection with these names in a certificate.

        A token is taken before the certificate, and a bad token never falls back to it. `certificate` holds names
        of a client certificate that TLS has verified. Unauthenticated says no more than a stranger may know;
        IssuerUnreachable: try again soon. Without [auth] it is ANYONE.
        """
        if self._grants is None:
            return ANYONE
        try:
            identity = await self._identity(authorization, certificate)
        except Refused as error:
            log.info("a bearer token was refused: %s", error.reason)
            raise
        return Principal(identity.name, self._grants.current().of(identity.subjects))

    async def _identity(self, authorization: Sequence[str], certificate: Sequence[str]) -> Identity:
        if authorization:
            return await self._bearer(_token(authorization))
        if certificate:
            subjects: list[Subject] = [("cert", name) for name in certificate]
            return Identity(f"certificate {certificate[0]}", frozenset(subjects))
        raise Unauthenticated(_NAMELESS)

    async def _bearer(self, token: str) -> Identity:
        if self._tokens is not None and (found := self._tokens.current().find(token)) is not None:
            return found
        if self._issuer is not None and token.count(".") == 2:
            return await self._issuer.identify(token)
        raise Refused("it is not among auth.tokens" if self._tokens else "it is no JWT, and auth.tokens is not set")


def _token(authorization: Sequence[str]) -> str:
    scheme, _, token = authorization[0].strip().partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(f"the header is not one `Bearer TOKEN`; {_NAMELESS}")
    if len(authorization[0]) > AUTHORIZATION_CHARS_MAX:
        raise Refused("it is too long for a token")
    return token.strip()
