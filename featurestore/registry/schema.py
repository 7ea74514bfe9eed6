"""The tables of registry and job state, as SQLAlchemy Core metadata; every table carries the project.

`migrations/versions/` holds the scripts that lead here; a test compares the two. Times are microseconds since the
epoch, JSON is canonical text.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text

#: Every revision of the tables, oldest first; the last one is what this code reads and writes.
REVISIONS = ("v0001", "v0002", "v0003")

metadata = MetaData()

#: A number of rows that the database gives, of 64 bits everywhere: those of SQLite have no other size.
_Number = BigInteger().with_variant(Integer, "sqlite")

#: One row a project; `revision` grows with every apply that changed something.
projects = Table(
    "projects",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

#: The applied definitions. `kind` is entity, view or service; a view's name is its ref.
definitions = Table(
    "definitions",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("document", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("signature", String(64)),
    Column("apply_id", BigInteger, nullable=False),
)

#: Every field list a view ever had. Ids are never used twice: a view that was removed and comes back goes on
#: counting, and its earlier lists stay behind as `retired`.
row_schemas = Table(
    "row_schemas",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("schema_id", Integer, primary_key=True),
    Column("fields", Text, nullable=False),
    Column("retired", Boolean, nullable=False),
    Column("apply_id", BigInteger, nullable=False),
)

#: Applies, oldest first. state: open (intent written), committed (definitions changed, drops pending), done,
#: rolled_back. `target` holds the documents the apply leads to, `work` what the stores have to do for it.
applies = Table(
    "applies",
    metadata,
    Column("apply_id", _Number, primary_key=True, autoincrement=True),
    Column("project", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("who", String(255), nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("finished_at_us", BigInteger),
    Column("revision", BigInteger),
    Column("steps", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("work", Text, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Index("applies_by_state", "project", "state"),
    sqlite_autoincrement=True,
)

#: The next sequence number of each view.
sequences = Table(
    "sequences",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("next", BigInteger, nullable=False),
)

#: The projection the online store holds: (position, horizon) of the last publish.
publish_states = Table(
    "publish_states",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("horizon_us", BigInteger, nullable=False),
    Column("watermark_us", BigInteger),
    Column("acknowledged_at_us", BigInteger, nullable=False),
)

#: One row for each publish, push batch and repair. A push names the sequences of the rows that it brought online; one
#: that was cut short names none (`sequence_to` is one less than `sequence_from`).
publish_log = Table(
    "publish_log",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("project", String(64), nullable=False),
    Column("view", String(128), nullable=False),
    Column("position_from", BigInteger, nullable=False),
    Column("position_to", BigInteger, nullable=False),
    Column("horizon_from_us", BigInteger),
    Column("horizon_to_us", BigInteger, nullable=False),
    Column("watermark_us", BigInteger),
    Column("started_at_us", BigInteger, nullable=False),
    Column("acknowledged_at_us", BigInteger, nullable=False),
    Column("rows_written", BigInteger, nullable=False),
    Column("keys_repaired", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sequence_from", BigInteger),
    Column("sequence_to", BigInteger),
    Index("publish_log_by_view", "project", "view", "id"),
    sqlite_autoincrement=True,
)

#: Push batches that have taken their sequences and are not acknowledged; `holder` is empty once nobody works on it.
open_pushes = Table(
    "open_pushes",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("sequence_from", BigInteger, primary_key=True),
    Column("started_at_us", BigInteger, nullable=False),
    Column("begun_at_us", BigInteger, nullable=False),
    Column("holder", String(255), nullable=False),
)

#: Who may write a view. A released lease keeps its row, so that `fence` only grows; expires_at_us is then 0.
leases = Table(
    "leases",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("acquired_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
)

#: Jobs, as people see them.
runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("views", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("finished_at_us", BigInteger),
    Column("counts", Text, nullable=False),
    Column("error", Text, nullable=False),
    Index("runs_by_start", "project", "started_at_us"),
)

#: What a loader has read of a source; the JSON is its own.
cursors = Table(
    "cursors",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("view", String(128), primary_key=True),
    Column("cursor", Text, nullable=False),
)

#: Who read which views, and when last. `views` is a JSON list of refs; see `readers.py` for the kinds.
readers = Table(
    "readers",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("views", Text, nullable=False),
    Column("seen_at_us", BigInteger, nullable=False),
    Column("service", String(128), nullable=False),
    Column("signature", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)
