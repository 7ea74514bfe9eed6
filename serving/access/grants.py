"""The file of grants: TOML tables of principals and roles, and what each may do."""

from __future__ import annotations

from functools import lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from featurestore.errors import ConfigError
from serving.access.principal import Grant, Names
from serving.access.watched import Watched, listed, parse_toml

KINDS = ("token", "jwt", "cert", "role")
"""What a grant is given to: a token by name, a JWT by subject, a certificate by name, a role. Each is a space of its
own, so that nobody becomes another by taking its name elsewhere."""

#: A subject is its kind and its name: ("role", "readers").
Subject = tuple[str, str]

#: Roles and JWT subjects come from outside: combinations kept ready, the least used go.
COMBINATIONS_MAX = 10_000

_Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_*?]+$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    read: list[_Pattern] = []
    views: list[_Pattern] = []
    push: list[_Pattern] = []
    operate: bool = False


_TABLES = TypeAdapter(dict[str, dict[str, _Entry]])


class GrantTable:
    """Who may do what."""

    def __init__(self, grants: dict[Subject, Grant]) -> None:
        self._grants = grants
        #: The grants of some subjects together; nobody named there may do nothing.
        self.of = lru_cache(maxsize=COMBINATIONS_MAX)(self._of)

    def _of(self, subjects: frozenset[Subject]) -> Grant:
        return reduce(or_, (self._grants[subject] for subject in sorted(subjects & self._grants.keys())), Grant())


def watch_grants(path: Path) -> Watched[GrantTable]:
    """The grants of a file, current; ConfigError when the file is bad at the start."""
    return Watched(f"auth.grants ({path})", [path], lambda contents: parse_grants(contents[0], str(path)))


def parse_grants(content: bytes, path: str) -> GrantTable:
    """The grants in TOML text; ConfigError names every fault."""
    document = parse_toml(content, path)
    faults = [f"[{kind}...] is no kind of principal; known: {', '.join(KINDS)}" for kind in document.keys() - {*KINDS}]
    try:
        tables = _TABLES.validate_python(document)
    except ValidationError as error:
        faults += [f"[{'.'.join(map(str, detail['loc']))}] {detail['msg']}" for detail in error.errors()]
        tables = {}
    if faults:
        raise ConfigError(f"{path}: {listed(faults)} (an entry holds read, views, push: lists of names; operate)")
    return GrantTable({(kind, name): _grant(entry) for kind, of in tables.items() for name, entry in of.items()})


def _grant(entry: _Entry) -> Grant:
    read, views, push = (Names(tuple(patterns)) for patterns in (entry.read, entry.views, entry.push))
    return Grant(read=read, views=views, push=push, operate=entry.operate)
