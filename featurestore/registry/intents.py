"""The log of applies: the intent written before anything is touched, the one transaction that changes definitions.

State of a row: open (intent written, nothing known yet), committed (definitions changed, data of removed views may
still be there), done, rolled_back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from featurestore.errors import NotFoundError
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.registry.definitions import Definitions
from featurestore.registry.document import canonical_json, field_document
from featurestore.registry.registry import Registry
from featurestore.registry.schema import applies, definitions, projects, row_schemas
from featurestore.registry.state import Lease, StateStore

ApplyState = Literal["open", "committed", "done", "rolled_back"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the stores have to do: histories to make or widen (`created`: those that are new), data to drop."""

    ensure: tuple[str, ...] = ()
    created: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ApplyRecord:
    """One apply: who, when, and what, step by step, with the fingerprints it led to."""

    id: int
    state: ApplyState
    who: str
    started_at_us: int
    finished_at_us: int | None
    #: The registry's revision it made; None unless it came to that.
    revision: int | None
    steps: Sequence[Mapping[str, Any]]
    #: Of all definitions together.
    fingerprint: str
    target: Definitions = field(repr=False)
    work: Work = field(repr=False)


def write_intent(
    registry: Registry, *, who: str, now_us: int, steps: Sequence[Mapping[str, Any]], target: Definitions, work: Work
) -> ApplyRecord:
    """Say durably what is about to be done; the lease on applying makes it the only open one."""
    with registry.database.write() as connection:
        key = connection.execute(
            insert(applies).values(
                project=registry.project,
                state="open",
                who=who[:255],
                started_at_us=now_us,
                steps=_text(list(steps)),
                target=_text(target.documents()),
                work=_text({name: list(getattr(work, name)) for name in ("ensure", "created", "drop")}),
                fingerprint=target.fingerprint(),
            )
        ).inserted_primary_key
        assert key is not None
        return _one(connection, registry.project, key[0])


def open_intent(registry: Registry) -> ApplyRecord | None:
    """The apply that was not finished, if there is one."""
    with registry.database.read() as connection:
        query = select(applies).where(applies.c.project == registry.project)
        row = connection.execute(query.where(applies.c.state.in_(("open", "committed")))).first()
    return None if row is None else _record(row)


def list_applies(registry: Registry, limit: int = 50) -> list[ApplyRecord]:
    """The latest applies, newest first."""
    with registry.database.read() as connection:
        query = select(applies).where(applies.c.project == registry.project)
        rows = connection.execute(query.order_by(applies.c.apply_id.desc()).limit(limit)).all()
    return [_record(row) for row in rows]


def read_apply(registry: Registry, apply_id: int) -> ApplyRecord:
    """One apply; NotFoundError."""
    with registry.database.read() as connection:
        return _one(connection, registry.project, apply_id)


def commit_definitions(registry: Registry, state: StateStore, intent: ApplyRecord, lease: Lease) -> None:
    """All definitions of the intent in one transaction; StoreBusy when the lease on applying is lost."""
    project = registry.project
    with registry.database.write() as connection:
        state.require_lease(connection, lease)
        connection.execute(delete(definitions).where(definitions.c.project == project))
        rows = _definition_rows(project, intent)
        if rows:
            connection.execute(insert(definitions), rows)
        _commit_row_schemas(connection, project, intent)
        revision = (connection.scalar(select(projects.c.revision).where(projects.c.project == project)) or 0) + 1
        changed = connection.execute(update(projects).where(projects.c.project == project).values(revision=revision))
        if changed.rowcount == 0:
            connection.execute(insert(projects).values(project=project, revision=revision))
        mine = applies.c.apply_id == intent.id
        connection.execute(update(applies).where(mine).values(state="committed", revision=revision))


def end_intent(
    registry: Registry, state: StateStore, intent: ApplyRecord, ended: ApplyState, now_us: int, lease: Lease
) -> ApplyRecord:
    """Mark the intent done or rolled_back; StoreBusy when the lease on applying is lost."""
    with registry.database.write() as connection:
        state.require_lease(connection, lease)
        mine = applies.c.apply_id == intent.id
        connection.execute(update(applies).where(mine).values(state=ended, finished_at_us=now_us))
        return _one(connection, registry.project, intent.id)


# ------------------------------------------------------------------ rows


def _definition_rows(project: str, intent: ApplyRecord) -> list[dict[str, Any]]:
    target = intent.target
    by_kind: dict[str, Mapping[str, Any]] = {
        "entity": target.entities,
        "view": target.views,
        "service": target.services,
    }
    return [
        {
            "project": project,
            "kind": kind,
            "name": name,
            "document": _text(document),
            "fingerprint": definition_fingerprint(by_kind[kind][name]),
            "signature": service_signature(target.services[name], target.views) if kind == "service" else None,
            "apply_id": intent.id,
        }
        for kind, documents in target.documents().items()
        for name, document in documents.items()
    ]


def _commit_row_schemas(connection: Connection, project: str, intent: ApplyRecord) -> None:
    """A new id for every view whose rows are laid out anew; lists of removed views retire."""
    of_project = row_schemas.c.project == project
    current = connection.execute(select(row_schemas).where(of_project, row_schemas.c.retired.is_(False))).all()
    newest: dict[str, Row[Any]] = {}
    for row in sorted(current, key=lambda row: row.schema_id):
        newest[row.view] = row
    highest_ids = connection.execute(
        select(row_schemas.c.view, func.max(row_schemas.c.schema_id)).where(of_project).group_by(row_schemas.c.view)
    )
    highest = {view: schema_id for view, schema_id in highest_ids}
    for gone in sorted(set(newest) - set(intent.target.views)):
        connection.execute(update(row_schemas).where(of_project, row_schemas.c.view == gone).values(retired=True))
    for ref, view in sorted(intent.target.views.items()):
        fields = [field_document(field) for field in view.schema]
        if ref not in newest or _layout(json.loads(newest[ref].fields)) != _layout(fields):
            connection.execute(
                insert(row_schemas).values(
                    project=project,
                    view=ref,
                    schema_id=highest.get(ref, 0) + 1,
                    fields=_text(fields),
                    retired=False,
                    apply_id=intent.id,
                )
            )


def _layout(fields: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What decides how rows are written."""
    return [(field["name"], field["dtype"], field.get("nullable", True)) for field in fields]


def _one(connection: Connection, project: str, apply_id: int) -> ApplyRecord:
    query = select(applies).where(applies.c.project == project, applies.c.apply_id == apply_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        known = connection.scalars(select(applies.c.apply_id).where(applies.c.project == project))
        raise NotFoundError("apply", str(apply_id), map(str, known))
    return _record(row)


def _record(row: Row[Any]) -> ApplyRecord:
    return ApplyRecord(
        id=row.apply_id,
        state=row.state,
        who=row.who,
        started_at_us=row.started_at_us,
        finished_at_us=row.finished_at_us,
        revision=row.revision,
        steps=tuple(json.loads(row.steps)),
        fingerprint=row.fingerprint,
        target=Definitions.from_documents(json.loads(row.target)),
        work=Work(**{name: tuple(refs) for name, refs in json.loads(row.work).items()}),
    )


def _text(value: Any) -> str:
    return canonical_json(value).decode("ascii")
