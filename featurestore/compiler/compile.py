"""The compiler's entry points: definition in, SQL out. PASSES is the order in which a training set is built."""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler import append_rows, history_table, latest_rows
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import (
    Pass,
    PointInTimeJoin,
    asked_entities,
    asked_rows,
    break_ties,
    fetch_fields,
    leading_rows,
    match,
    pinned_rows,
)
from featurestore.feature_view import FeatureView

PASSES: tuple[Pass, ...] = (
    pinned_rows,
    asked_entities,
    asked_rows,
    leading_rows,
    match,
    break_ties,
    fetch_fields,
)

DIALECTS = {"duckdb": DUCKDB}


def point_in_time_join(join: PointInTimeJoin, dialect: Dialect) -> str:
    """SQL that answers each row of `_spine` with (_row, event_timestamp, fields...); unanswered rows are absent."""
    tree = exp.Select()
    for step in PASSES:
        tree = step(tree, join)
    return dialect.sql(tree)


def latest(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the greatest qualifying row of each entity."""
    return dialect.sql(latest_rows.latest_rows(query))


def pending(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the number of qualifying rows and their greatest event time."""
    return dialect.sql(latest_rows.count_pending(query))


def entities(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the entities known among the qualifying rows."""
    return dialect.sql(latest_rows.known_entities(query))


def rows_of(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for the history rows whose sequences stand in `_incoming`."""
    return dialect.sql(latest_rows.rows_of(project, view))


def known_rows(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for what history knows of the rows in `_incoming`."""
    return dialect.sql(append_rows.known_rows(project, view, dialect))


def history_ddl(project: str, view: FeatureView, dialect: Dialect = DUCKDB) -> list[str]:
    """DDL of the history of `view`."""
    return [dialect.sql(history_table.create_history(project, view, dialect))]
