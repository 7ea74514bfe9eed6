"""Who read which views, and when last: what decides whether a view may go, and what `describe` shows as consumers.

A reader is a feature service that a serving process answered, features asked for one by one, a training set, or a
model. Times are real ones, like those of runs: a replay of 2013 reads today.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, insert, select, update

from featurestore.clock import SystemClock, iso_text, timedelta_us, to_us
from featurestore.registry.document import canonical_json
from featurestore.registry.schema import readers
from featurestore.registry.state import StateStore

ReaderKind = Literal["service", "features", "training set", "model"]

#: Paths of models may be longer.
NAME_LENGTH_MAX = 255
#: How long after its last read a reader counts as one, unless `[registry] readers_days` says otherwise.
RECENT = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader as it was last seen. `name`: a service, a view's ref, a training set's digest, or a model."""

    kind: ReaderKind
    name: str
    #: What it read, as name@version.
    views: tuple[str, ...]
    seen_at_us: int
    #: The feature service it reads by and its signature then; empty for features named one by one.
    service: str = ""
    signature: str = ""
    #: Of a training set or a model: where its manifest or file lay, and the content digest of the training set.
    path: str = ""
    digest: str = ""

    def __str__(self) -> str:
        by = f" of service {self.service}" if self.service and self.kind in ("training set", "model") else ""
        name = self.name[:12] if self.kind == "training set" else self.name
        kind = {"service": "serving of", "features": "requests for features of"}.get(self.kind, self.kind)
        return f"{kind} {name}{by}, last seen {iso_text(self.seen_at_us - self.seen_at_us % 1_000_000)}"


def record_reader(
    state: StateStore,
    kind: ReaderKind,
    name: str,
    views: Sequence[str],
    *,
    service: str = "",
    signature: str = "",
    path: str = "",
    digest: str = "",
    seen_at_us: int | None = None,
) -> None:
    """Note that `name` read `views` (refs) just now, or at `seen_at_us`; what was known of it is replaced."""
    facts = {"service": service, "signature": signature, "path": path, "digest": digest}
    seen = to_us(SystemClock().now()) if seen_at_us is None else seen_at_us
    record_readers(state, [Reader(kind=kind, name=name, views=tuple(views), seen_at_us=seen, **facts)])


def record_readers(state: StateStore, seen: Iterable[Reader]) -> None:
    """Note several, in one transaction; an older sight never replaces a newer one."""
    with state.database.write() as connection:
        for reader in seen:
            reader = replace(reader, name=reader.name[:NAME_LENGTH_MAX])
            mine = (readers.c.project == state.project) & (readers.c.kind == reader.kind)
            mine &= readers.c.name == reader.name
            known: int | None = connection.scalar(select(readers.c.seen_at_us).where(mine))
            if known is None:
                connection.execute(insert(readers).values(project=state.project, **_row(reader)))
            elif known <= reader.seen_at_us:
                connection.execute(update(readers).where(mine).values(**_row(reader)))


def list_readers(state: StateStore) -> list[Reader]:
    """All that were ever seen, the latest first."""
    query = select(readers).where(readers.c.project == state.project)
    with state.database.read() as connection:
        seen = [_reader(dict(row)) for row in connection.execute(query).mappings()]
    return sorted(seen, key=lambda reader: (-reader.seen_at_us, reader.kind, reader.name))


def recent_readers(state: StateStore, recent: timedelta = RECENT) -> list[Reader]:
    """Those seen within `recent` before now, the latest first."""
    since_us = to_us(SystemClock().now()) - timedelta_us(recent)
    return [reader for reader in list_readers(state) if reader.seen_at_us > since_us]


def forget_view(state: StateStore, ref: str) -> None:
    """The view is gone with its data: whoever read it does not hold one of the same name that is made later."""
    with state.database.write() as connection:
        for row in connection.execute(select(readers).where(readers.c.project == state.project)).mappings().all():
            reader = _reader(dict(row))
            if ref not in reader.views:
                continue
            mine = (readers.c.project == state.project) & (readers.c.kind == reader.kind)
            mine &= readers.c.name == reader.name
            left = _text(view for view in reader.views if view != ref)
            connection.execute(update(readers).where(mine).values(views=left))
            connection.execute(delete(readers).where(mine, readers.c.views == _text(())))


def _row(reader: Reader) -> dict[str, Any]:
    names = ("kind", "name", "seen_at_us", "service", "signature", "path", "digest")
    return {name: getattr(reader, name) for name in names} | {"views": _text(reader.views)}


def _text(views: Iterable[str]) -> str:
    return canonical_json(list(views)).decode("ascii")


def _reader(row: Mapping[str, Any]) -> Reader:
    facts = {name: value for name, value in row.items() if name != "project"}
    return Reader(**{**facts, "views": tuple(json.loads(row["views"]))})
