"""Static bearer tokens: random text that the client keeps, of which the operator's file holds only digests.

A digest needs no salt where a token has 128 random bits or more: there is nothing to look up in a table.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic import Field as Setting

from featurestore.errors import ConfigError, Unauthenticated
from serving.access.grants import Subject
from serving.access.watched import Watched, listed, parse_toml

#: What scanners of leaked secrets look for.
PREFIX = "fst_"
TOKEN_BYTES = 32
#: A shorter token was not made at random, and its digest could be tried out.
TOKEN_CHARS_MIN = 24

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    sha256: Annotated[list[_Digest], Setting(min_length=1)]
    roles: list[Name] = []


_TABLE = TypeAdapter(dict[Name, _Entry])


@dataclass(frozen=True)
class Identity:
    """A caller that showed who it is: its name in messages and logs, and all that grants may be given to."""

    name: str
    subjects: frozenset[Subject]


class Refused(Unauthenticated):
    """A token that is not accepted; `reason` is for the log, and holds nothing of the token.

    Whatever is wrong with its form, signature, key, audience or issuer, the caller is told the same.
    """

    def __init__(
        self,
        reason: str,
        message: str = "the bearer token is not accepted; ask the operator of the serving process, whose log says why",
    ) -> None:
        self.reason = reason
        super().__init__(message)


class StaticTokens:
    """The tokens of one file."""

    def __init__(self, entries: list[tuple[bytes, Identity]]) -> None:
        self._entries = entries

    def find(self, token: str) -> Identity | None:
        """Whose token it is. Every entry is compared, in constant time, whether one was found or not."""
        digest = _digest(token)
        found = None
        for known, identity in self._entries:
            if hmac.compare_digest(known, digest):
                found = identity
        return found if len(token) >= TOKEN_CHARS_MIN else None


def new_token() -> str:
    """A token nobody can guess."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_entry(name: str, token: str, roles: list[str]) -> str:
    """The lines for the file of tokens; ConfigError for names that cannot stand there."""
    lines = [f'["{name}"]' if "." in name else f"[{name}]", f'sha256 = ["{_digest(token).hex()}"]']
    if roles:
        lines.append("roles = [" + ", ".join(f'"{role}"' for role in roles) + "]")
    text = "\n".join(lines) + "\n"
    try:
        _TABLE.validate_python({name: {"sha256": [_digest(token).hex()], "roles": roles}})
    except ValidationError:
        raise ConfigError("names and roles hold letters, digits, _, . and -, at most 100; choose another") from None
    return text


def watch_tokens(path: Path) -> Watched[StaticTokens]:
    """The tokens of a file, current; ConfigError when the file is bad at the start."""
    return Watched(f"auth.tokens ({path})", [path], lambda contents: parse_tokens(contents[0], str(path)))


def parse_tokens(content: bytes, path: str) -> StaticTokens:
    """The tokens in TOML text; ConfigError names the entries at fault by number, since a token may stand anywhere."""
    document = parse_toml(content, path)
    try:
        table = _TABLE.validate_python(document)
    except ValidationError as error:
        faults = {_fault(list(document), detail) for detail in error.errors()}
        raise ConfigError(
            f"{path}: {listed(faults)}; an entry is a name with sha256 = [digests of its tokens] and roles = [...], as "
            "`featurestore token NAME` writes it"
        ) from None
    entries: dict[bytes, Identity] = {}
    for number, (name, entry) in enumerate(table.items(), start=1):
        subjects = frozenset([("token", name), *(("role", role) for role in entry.roles)])
        for digest in map(bytes.fromhex, entry.sha256):
            if digest in entries:
                raise ConfigError(f"{path}: entry {number} repeats a digest; a token belongs to one name, once")
            entries[digest] = Identity(f"token {name}", subjects)
    return StaticTokens(list(entries.items()))


def _fault(names: list[str], detail: Any) -> str:
    name, *rest = detail["loc"]
    field = rest[0] if rest and rest[0] in _Entry.model_fields else "its settings" if rest else "its name"
    return f"entry {names.index(name) + 1}, {field}: {detail['msg']}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
