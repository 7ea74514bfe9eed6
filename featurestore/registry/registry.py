"""What is applied: reads of the registry. Changing it is the work of `apply.py`, which goes through an intent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from featurestore.entity import Entity
from featurestore.errors import NotFoundError, StoreError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.registry.database import WAIT_S, Database
from featurestore.registry.definitions import Definitions
from featurestore.registry.document import field_from
from featurestore.registry.schema import definitions, projects, row_schemas
from featurestore.registry.state import StateStore


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that is applied at one revision."""

    revision: int
    definitions: Definitions = field(default_factory=Definitions)
    row_schemas: Mapping[str, Mapping[int, tuple[Field, ...]]] = field(default_factory=dict)
    fingerprints: Mapping[tuple[str, str], str] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)

    def view(self, name: str) -> FeatureView:
        """The view `name@version`, or the highest version of `name`; NotFoundError."""
        views = self.definitions.views
        if name in views:
            return views[name]
        versions = [view for view in views.values() if view.name == name]
        if not versions:
            raise NotFoundError("feature view", name, views)
        return max(versions, key=lambda view: view.version)


class Registry:
    """The applied definitions of one project; read again only when another revision was applied."""

    def __init__(self, database: Database, project: str) -> None:
        self.database, self.project = database, project
        self._snapshot = Snapshot(revision=-1)

    def snapshot(self) -> Snapshot:
        """All that is applied now, of one revision."""
        with self.database.read() as connection:
            revision = _revision(connection, self.project)
            if self._snapshot.revision != revision:
                self._snapshot = _read(connection, self.project, revision)
        return self._snapshot

    def entities(self) -> dict[str, Entity]:
        """The applied entities by name."""
        return dict(self.snapshot().definitions.entities)

    def views(self) -> dict[str, FeatureView]:
        """The applied feature views by ref, `name@version`."""
        return dict(self.snapshot().definitions.views)

    def services(self) -> dict[str, FeatureService]:
        """The applied feature services by name."""
        return dict(self.snapshot().definitions.services)

    def view(self, name: str) -> FeatureView:
        """The view `name@version`, or the highest version of `name`; NotFoundError."""
        return self.snapshot().view(name)

    def service(self, name: str) -> FeatureService:
        """The feature service `name`; NotFoundError."""
        services = self.snapshot().definitions.services
        if name not in services:
            raise NotFoundError("feature service", name, services)
        return services[name]

    def signature(self, name: str) -> str:
        """The signature of an applied service, as recorded by its apply; NotFoundError."""
        signatures = self.snapshot().signatures
        if name not in signatures:
            raise NotFoundError("feature service", name, signatures)
        return signatures[name]

    def fingerprint(self, kind: str, name: str) -> str:
        """The definition fingerprint of an applied "entity", "view" (by ref) or "service", recorded by its apply."""
        return self.snapshot().fingerprints[kind, name]

    def schema_id(self, ref: str) -> int:
        """The id of the view's current field list, written in every row of history and online store."""
        return max(self.row_schemas(ref))

    def row_schemas(self, ref: str) -> dict[int, tuple[Field, ...]]:
        """Every field list the view has had since it was created, by schema id; rows decode with their own."""
        schemas = self.snapshot().row_schemas
        if ref not in schemas:
            raise NotFoundError("feature view", ref, schemas)
        return dict(schemas[ref])

    def revision(self) -> int:
        """Grows with every apply that changed something; 0 before the first."""
        with self.database.read() as connection:
            return _revision(connection, self.project)

    def close(self) -> None:
        """Close the database (of the job state too: they share it)."""
        self.database.close()


def open_state(
    where: Path | str, project: str, *, password: str | None = None, wait_s: float = WAIT_S
) -> tuple[Registry, StateStore]:
    """Registry and job state of one project, made where they do not exist: in a SQLite file (a path), or in the
    Postgres database at an address, which needs psycopg (ModuleNotFoundError)."""
    if isinstance(where, Path):
        from featurestore.registry.sqlite import open_file

        database = open_file(where, wait_s)
    else:
        from featurestore.registry.postgres import open_server

        database = open_server(where, password, project, wait_s)
    return Registry(database, project), StateStore(database, project)


def _revision(connection: Connection, project: str) -> int:
    revision: int | None = connection.scalar(select(projects.c.revision).where(projects.c.project == project))
    return revision or 0


def _read(connection: Connection, project: str, revision: int) -> Snapshot:
    found = connection.execute(select(definitions).where(definitions.c.project == project))
    rows = sorted(found, key=lambda row: (row.kind, row.name))  # databases sort text by their locale
    documents: dict[str, dict[str, Any]] = {}
    for row in rows:
        documents.setdefault(row.kind, {})[row.name] = json.loads(row.document)
    try:
        return Snapshot(
            revision=revision,
            definitions=Definitions.from_documents(documents),
            row_schemas=_row_schemas(connection, project),
            fingerprints={(row.kind, row.name): row.fingerprint for row in rows},
            signatures={row.name: row.signature for row in rows if row.signature is not None},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the registry holds a definition that this release cannot read ({error}); upgrade featurestore, "
            "or restore the registry from a backup"
        ) from error


def _row_schemas(connection: Connection, project: str) -> dict[str, dict[int, tuple[Field, ...]]]:
    found: dict[str, dict[int, tuple[Field, ...]]] = {}
    query = select(row_schemas).where(row_schemas.c.project == project, row_schemas.c.retired.is_(False))
    for row in sorted(connection.execute(query), key=lambda row: (row.view, row.schema_id)):
        fields = tuple(field_from(document) for document in json.loads(row.fields))
        found.setdefault(row.view, {})[row.schema_id] = fields
    return found
