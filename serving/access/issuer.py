"""JWTs of one issuer: signature, audience, issuer and times are checked before any claim is believed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from featurestore.clock import SystemClock, to_us
from featurestore.errors import ConfigError
from featurestore.settings_access import AuthSettings
from serving.access.keys import FileKeys, Keys, KeySet, UrlKeys
from serving.access.tokens import Identity, Refused

try:
    import jwt
except ImportError as error:
    raise ConfigError("auth.jwt_issuer needs PyJWT; pip install 'featurestore[auth]'") from error

#: Checked tokens that are remembered; to check one takes some 0.1 ms.
REMEMBERED_MAX = 10_000
SUBJECT_CHARS_MAX = 256
#: The year 9999; an issuer may write any number.
EXP_MAX = 253_402_300_799


class Issuer:
    """Tells whose a JWT is."""

    def __init__(self, settings: AuthSettings, keys: Keys | None = None) -> None:
        self._settings, self._keys = settings, keys or _keys(settings)
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})
        # Digest of a token -> whose it is, until when (us), and by which keys.
        self._remembered: OrderedDict[bytes, tuple[Identity, int, KeySet]] = OrderedDict()

    async def start(self) -> None:
        """Read the keys, if they can be had."""
        await self._keys.start()

    async def identify(self, token: str) -> Identity:
        """Whose token it is; Refused, or IssuerUnreachable when it cannot be checked now."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._remembered.get(digest)
        # Tokens are issued under the wall clock, whatever date is replayed here.
        if known is not None and known[2] is self._keys.current() and to_us(SystemClock().now()) < known[1]:
            self._remembered.move_to_end(digest)
            return known[0]
        keys = self._keys.current()
        claims = await self._claims(token)
        identity = self._identity(claims)
        until_us = min(int(claims["exp"]), EXP_MAX) * 1_000_000 + int(self._settings.jwt_leeway_s * 1e6)
        self._remembered[digest] = (identity, until_us, keys)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return identity

    async def _claims(self, token: str) -> Mapping[str, Any]:
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in settings.jwt_algorithms:
                raise Refused("its algorithm is not allowed")
            if not isinstance(kid, str):
                raise Refused("it names no key (kid)")
            found = await self._keys.find(kid)
            if found is None:
                raise Refused("the issuer has no key of its id (kid)")
            if found.get("alg", algorithm) != algorithm:
                raise Refused("its key is for another algorithm")
            return self._jwt.decode(
                token,
                jwt.PyJWK(dict(found), algorithm),
                algorithms=[algorithm],
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=settings.jwt_leeway_s,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise Refused("it has expired", "the bearer token has expired; get a new one from its issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # Neither chained nor quoted: such errors tell what they read. (Older PyJWTs let the last two through.)
            raise Refused(f"it does not pass ({type(error).__name__})") from None

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = _claim(claims, self._settings.jwt_subject_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS_MAX or not subject.isprintable():
            raise Refused(f"its {self._settings.jwt_subject_claim} is no printable text")
        roles = _claim(claims, self._settings.jwt_roles_claim) if self._settings.jwt_roles_claim else ()
        named = roles.split() if isinstance(roles, str) else roles if isinstance(roles, list) else ()
        subjects = [("jwt", subject), *(("role", role) for role in named if isinstance(role, str))]
        return Identity(f"jwt {subject}", frozenset(subjects))


def _keys(settings: AuthSettings) -> Keys:
    if settings.jwks_path is not None:
        return FileKeys(settings.jwks_path)
    assert settings.jwks_url is not None, "the settings were checked"
    return UrlKeys(settings.jwks_url, settings.jwks_refresh_s, settings.jwks_timeout_s)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name; where there is none, `a.b` is b inside a."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
