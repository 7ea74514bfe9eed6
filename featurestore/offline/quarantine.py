"""The quarantine of a project: rows that broke the contract, whole, until they are replayed or dropped.

What both engines share: the columns, the statements and what can be asked. A row has one `id`, a digest of what it
says, so a row that is set aside again is not kept twice: it keeps its place, its run and its time, and the reason
becomes that of the last judgement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from featurestore.arrow_types import TIMESTAMP
from featurestore.errors import TooManyBreaches

#: Rows of a view that are kept where the settings do not say.
ROWS_MAX = 1_000_000

QUARANTINE_SCHEMA = pa.schema(
    [
        ("view", pa.string()),
        ("id", pa.string()),
        #: When it arrived among all rows of the view; 0 when it was set aside before this was kept.
        ("sequence", pa.int64()),
        #: The definition fingerprint of the view that judged it; empty as before.
        ("definition", pa.string()),
        ("run", pa.string()),
        ("rule", pa.string()),
        ("field", pa.string()),
        ("reason", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.int64()),
        #: What the source said, as `ingest/raw_rows.py` writes it; both are empty when it was not kept.
        ("raw", pa.string()),
        ("raw_form", pa.string()),
        ("quarantined_at", TIMESTAMP),
    ]
)
TOTALS_SCHEMA = pa.schema([("view", pa.string()), ("rows", pa.int64())])
FORMS_SCHEMA = pa.schema([("raw_form", pa.string())])
COUNTS_SCHEMA = pa.schema(
    [
        ("view", pa.string()),
        ("rule", pa.string()),
        ("field", pa.string()),
        ("run", pa.string()),
        ("rows", pa.int64()),
        ("first_at", TIMESTAMP),
        ("last_at", TIMESTAMP),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Which quarantined rows are meant; what is empty chooses nothing away. `view` is a ref."""

    view: str = ""
    rule: str = ""
    run: str = ""
    id: str = ""

    def document(self) -> dict[str, str]:
        """The parts by name."""
        return asdict(self)


class Quarantine(Protocol):
    """The quarantined rows of a project."""

    def rows(self, chosen: Chosen, *, limit: int | None = None, after: tuple[int, str] = (-1, "")) -> pa.Table:
        """Rows in the order of their arrival, view by view; `after` is the (sequence, id) of one already seen."""
        ...

    def forms(self, chosen: Chosen) -> list[str]:
        """Each form that rows have, once, in the order of arrival."""
        ...

    def counts(self, chosen: Chosen) -> pa.Table:
        """How many there are by view, rule, field and run."""
        ...

    def totals(self) -> dict[str, int]:
        """How many there are of each view that has any."""
        ...

    def drop(self, chosen: Chosen) -> int:
        """Remove rows for good; returns how many."""
        ...

    def require_room(self, ref: str) -> None:
        """TooManyBreaches when the view has as many quarantined rows as may be kept."""
        ...


def pages(quarantine: Quarantine, chosen: Chosen, rows_max: int, bytes_max: int | None = None) -> Iterator[pa.Table]:
    """Rows of one view in the order of their arrival, so many at a time; those read may be removed meanwhile.

    With `bytes_max` a page has as many rows as fit it, if they are as long as those of the page before.
    """
    after, limit = (-1, ""), rows_max if bytes_max is None else min(rows_max, _FIRST_ROWS)
    while (page := quarantine.rows(chosen, limit=limit, after=after)).num_rows:
        yield page
        after = (page.column("sequence")[-1].as_py(), page.column("id")[-1].as_py())
        if bytes_max is not None:
            limit = max(1, min(rows_max, bytes_max * page.num_rows // page.nbytes))


#: Of a page before which none was seen.
_FIRST_ROWS = 500


def grown(rows: pa.Table) -> pa.Table:
    """Rows that an earlier release set aside and that still wait in the inbox, with the columns of today."""
    if "id" not in rows.column_names:
        said = zip(*(rows.column(name).to_pylist() for name in ("view", "rule", "field", "raw")), strict=True)
        digests = [hashlib.md5(" ".join(parts).encode(), usedforsecurity=False).hexdigest() for parts in said]
        rows = rows.append_column("id", pa.array([digest[:16] for digest in digests], pa.string()))
    for field in QUARANTINE_SCHEMA:
        if field.name not in rows.column_names:
            absent = 0 if pa.types.is_integer(field.type) else ""
            rows = rows.append_column(field, pa.repeat(pa.scalar(absent, field.type), rows.num_rows))
    return rows.select(QUARANTINE_SCHEMA.names)


def numbered(refused: pa.Table | None, first: int) -> pa.Table | None:
    """Refused rows with their sequences, `first` and the following."""
    if refused is None:
        return None
    sequences = pa.array(np.arange(first, first + refused.num_rows, dtype=np.int64))
    return refused.set_column(refused.column_names.index("sequence"), "sequence", sequences)


def full(ref: str, rows: int, rows_max: int) -> TooManyBreaches:
    """What is said when quarantine has no room for a view's rows."""
    return TooManyBreaches(
        f"feature view {ref!r}: quarantine would hold {rows:,} of its rows, quarantine.max_rows allows {rows_max:,}; "
        f"`featurestore quarantine list --view {ref}` shows why: mend the source or the contract, then replay or drop "
        f"them, or raise quarantine.max_rows"
    )


#: Bounds no statement.
LIMIT_MAX = 2**63 - 1

CREATE = (
    "CREATE TABLE IF NOT EXISTS {table} (view {text} NOT NULL, id {text} NOT NULL, sequence bigint NOT NULL,"
    " definition {text} NOT NULL, run {text} NOT NULL, rule {text} NOT NULL, field {text} NOT NULL,"
    " reason {text} NOT NULL, source {text} NOT NULL, source_row bigint NOT NULL, raw {text} NOT NULL,"
    " raw_form {text} NOT NULL, quarantined_at timestamptz NOT NULL)"
)
#: What the table of an earlier release lacks. Its rows cannot be read back exactly: they have no form.
GROW = (
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS id {text} DEFAULT ''",
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS sequence bigint DEFAULT 0",
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS definition {text} DEFAULT ''",
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS raw_form {text} DEFAULT ''",
    "UPDATE {table} SET id = substr(md5(concat(view, ' ', rule, ' ', field, ' ', raw)), 1, 16) WHERE id = ''",
)
#: The same of the table of loads: rows judged, and rows that broke the contract, so far.
GROW_LOADS = (
    "ALTER TABLE {loads} ADD COLUMN IF NOT EXISTS checked bigint DEFAULT 0",
    "ALTER TABLE {loads} ADD COLUMN IF NOT EXISTS broken bigint DEFAULT 0",
)
JUDGE = (
    "UPDATE {table} AS kept SET rule = fresh.rule, field = fresh.field, reason = fresh.reason,"
    " definition = fresh.definition FROM {fresh} AS fresh WHERE kept.view = fresh.view AND kept.id = fresh.id AND"
    " (kept.rule, kept.field, kept.reason, kept.definition)"
    " IS DISTINCT FROM (fresh.rule, fresh.field, fresh.reason, fresh.definition)"
)
SET_ASIDE = (
    "INSERT INTO {table} ({columns}) SELECT {columns} FROM"
    " (SELECT DISTINCT ON (view, id) * FROM {fresh} ORDER BY view, id, sequence, source_row) AS fresh WHERE NOT EXISTS"
    " (SELECT 1 FROM {table} AS kept WHERE kept.view = fresh.view AND kept.id = fresh.id)"
    " ORDER BY sequence, source_row LIMIT {room}"
)
RELEASE = "DELETE FROM {table} WHERE view = {view} AND id IN (SELECT id FROM {fresh})"
_CHOSEN = (
    " WHERE ({view} = '' OR view = {view}) AND ({rule} = '' OR rule = {rule}) AND ({run} = '' OR run = {run})"
    " AND ({id} = '' OR id = {id})"
)
ROWS = (
    "SELECT {columns} FROM {table}{chosen} AND (sequence, id) > ({after_sequence}, {after_id})"
    " ORDER BY view, sequence, id LIMIT {limit}"
).replace("{chosen}", _CHOSEN)
FORMS = "SELECT raw_form FROM {table}{chosen} GROUP BY raw_form ORDER BY min(sequence), raw_form".replace(
    "{chosen}", _CHOSEN
)
COUNTS = (
    "SELECT view, rule, field, run, count(*), min(quarantined_at), max(quarantined_at) FROM {table}{chosen}"
    " GROUP BY view, rule, field, run ORDER BY view, rule, field, run"
).replace("{chosen}", _CHOSEN)
TOTALS = "SELECT view, count(*) FROM {table} GROUP BY view"
DROP = "DELETE FROM {table}{chosen}".replace("{chosen}", _CHOSEN)
COUNT = "SELECT count(*) FROM {table} WHERE view = {view}"
