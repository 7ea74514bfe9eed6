"""The public keys of an issuer of JWTs (JWKS): from a file, or from its address, kept and read again.

Reading an address never holds up the event loop, and strangers cannot make us do it often.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, Protocol

from featurestore.errors import ConfigError, IssuerUnreachable
from serving.access.watched import FILE_BYTES_MAX, Watched

log = logging.getLogger(__name__)

#: An unknown key makes us read the address again, at most this often: any stranger can name unknown keys.
REFETCH_S = 10.0
_CHUNK_BYTES = 64 << 10
#: Kinds of public keys; shared secrets ("oct") are none.
_PUBLIC = ("RSA", "EC", "OKP")

Jwk = Mapping[str, Any]
KeySet = Mapping[str, Jwk]


class Keys(Protocol):
    """Where an issuer's keys come from."""

    async def start(self) -> None:
        """Have keys ready, if they can be had."""
        ...

    async def find(self, kid: str) -> Jwk | None:
        """The key of this id; IssuerUnreachable when no keys could be had yet."""
        ...

    def current(self) -> KeySet:
        """The keys at hand; another object after each change."""
        ...


class FileKeys:
    """The keys in a file."""

    def __init__(self, path: Path) -> None:
        self._file = Watched(f"auth.jwks_path ({path})", [path], lambda contents: parse_keys(contents[0], str(path)))

    async def start(self) -> None:
        """They are there already."""

    async def find(self, kid: str) -> Jwk | None:
        """The key of this id."""
        return self.current().get(kid)

    def current(self) -> KeySet:
        """The keys in the file."""
        return self._file.current()


class UrlKeys:
    """The keys at an address; for one event loop. Those read last hold while the address does not answer."""

    def __init__(self, url: str, refresh_s: float, timeout_s: float, refetch_s: float | None = None) -> None:
        self._url, self._refresh_s, self._timeout_s = url, refresh_s, timeout_s
        self._refetch_s = REFETCH_S if refetch_s is None else refetch_s
        self._keys: KeySet | None = None
        self._read_at = self._begun_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the address once; what goes wrong is logged, and tried again when a token comes."""
        await self._read()

    async def find(self, kid: str) -> Jwk | None:
        """The key of this id, after another look at the address when it is unknown."""
        if kid not in self.current() and (reading := self._begin_reading()) is not None:
            # Not cancelled when this caller goes away: others wait for it too.
            await asyncio.wait([reading])
        if self._keys is None:
            raise IssuerUnreachable("the token cannot be checked: its issuer's keys cannot be read now; try again soon")
        return self._keys.get(kid)

    def current(self) -> KeySet:
        """The keys at hand; old ones are replaced behind the caller's back."""
        if time.monotonic() - self._read_at > self._refresh_s:
            self._begin_reading()
        return self._keys or {}

    def _begin_reading(self) -> asyncio.Task[None] | None:
        """The reading under way, or a new one; None when the last began a moment ago."""
        if self._reading is None or self._reading.done():
            if time.monotonic() - self._begun_at < self._refetch_s:
                return None
            self._reading = asyncio.get_running_loop().create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        self._begun_at = time.monotonic()
        try:
            keys = parse_keys(await asyncio.to_thread(_fetch, self._url, self._timeout_s), self._url)
        except (OSError, HTTPException, ConfigError) as error:
            held = (
                "none are known yet"
                if self._keys is None
                else f"those of {time.monotonic() - self._read_at:.0f} s ago hold"
            )
            log.warning("the issuer's keys cannot be read, %s: %s", held, error)
            return
        self._read_at = time.monotonic()
        if keys != self._keys:
            log.info("the issuer at %s has %d keys", self._url, len(keys))
            self._keys = keys


def parse_keys(content: bytes, where: str) -> KeySet:
    """kid -> key of a JSON Web Key Set; keys without an id, for encryption, or secret are left out."""
    try:
        document = json.loads(content)
        keys = document["keys"]
        found = {
            key["kid"]: key
            for key in keys
            if isinstance(key.get("kid"), str) and key.get("kty") in _PUBLIC and key.get("use", "sig") == "sig"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        found = {}
    if not found:
        raise ConfigError(f"{where} holds no JSON Web Key Set with public signing keys that have a kid")
    return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The keys are where the operator said, not where somebody points to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """None: the redirect becomes an error."""


def _fetch(url: str, timeout_s: float) -> bytes:
    """The document at `url`; OSError or HTTPException when it cannot be had in time and within bounds."""
    deadline = time.monotonic() + timeout_s
    content = b""
    with urllib.request.build_opener(_NoRedirects).open(url, timeout=timeout_s) as reply:
        # The timeout holds for each wait; the deadline for all of them, should bytes drip in.
        while chunk := reply.read1(_CHUNK_BYTES):
            content += chunk
            if len(content) > FILE_BYTES_MAX:
                raise OSError(f"more than {FILE_BYTES_MAX} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete within {timeout_s:g} s")
    return content
