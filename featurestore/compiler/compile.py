"""The compiler's entry points: definition in, SQL out. `passes` is the order in which a training set is built."""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler import append_rows, history_rules, history_table, latest_rows, names, nearest_rows
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.compiler.dialects.postgres import POSTGRES
from featurestore.compiler.history_rules import HistoryStretch
from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.point_in_time_join import (
    Pass,
    PointInTimeJoin,
    asked_entities,
    asked_rows,
    fetch_fields,
    pinned_rows,
)
from featurestore.feature_view import FeatureView

DIALECTS = {"duckdb": DUCKDB, "postgres": POSTGRES}


def passes(dialect: Dialect) -> tuple[Pass, ...]:
    """The passes of the point-in-time join in the order of their steps; how rows are matched is the engine's."""
    return (pinned_rows, dialect.served, asked_entities, asked_rows, *dialect.match, fetch_fields)


def point_in_time_join(join: PointInTimeJoin, dialect: Dialect) -> str:
    """SQL that answers each row of `_spine` with (_row, event_timestamp, fields...); unanswered rows are absent."""
    tree = exp.Select()
    for step in passes(dialect):
        tree = step(tree, join)
    return dialect.sql(tree)


def nearest(join: PointInTimeJoin, dialect: Dialect) -> str:
    """SQL that answers most rows of `_spine` by lookups, (_row, event_timestamp, fields..., _far), and marks the rest.

    A `_far` row has no answer yet: the greatest visible row lies beyond those that were looked at.
    """
    return dialect.sql(nearest_rows.nearest_rows(join))


def latest(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the greatest qualifying row of each entity."""
    return dialect.sql(latest_rows.latest_rows(query, dialect))


def pending(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the number of qualifying rows and their greatest event time."""
    return dialect.sql(latest_rows.count_pending(query, dialect))


def entities(query: LatestRows, dialect: Dialect) -> str:
    """SQL for the entities known among the qualifying rows."""
    return dialect.sql(latest_rows.known_entities(query, dialect))


def rows_of(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for the history rows whose sequences stand in `_incoming`."""
    return dialect.sql(latest_rows.rows_of(project, view, dialect))


def rows_up_to(project: str, view: FeatureView, position: int, dialect: Dialect) -> str:
    """SQL for all history rows up to a position."""
    return dialect.sql(latest_rows.rows_up_to(project, view, position))


def rows_at(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for the history rows whose join keys and times stand in `_incoming`."""
    return dialect.sql(latest_rows.rows_at(project, view, dialect))


def known_rows(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for what history knows of the rows in `_incoming`."""
    return dialect.sql(append_rows.known_rows(project, view, dialect))


def entities_among(project: str, view: FeatureView, dialect: Dialect) -> str:
    """SQL for the `_row` of those rows of `_incoming` whose join keys are an entity of the view's history."""
    incoming = exp.Table(this=exp.to_identifier(names.INCOMING, quoted=True))
    asked = exp.select(names.column(names.ROW)).from_(incoming)
    return dialect.sql(dialect.semi_join(asked, names.history(project, view), tuple(view.join_keys)))


def row_volume(project: str, stretch: HistoryStretch, dialect: Dialect) -> str:
    """SQL for the rows in the declared windows of a history: `history_rules.row_volume`."""
    return dialect.sql(history_rules.row_volume(project, stretch, dialect))


def event_gaps(project: str, stretch: HistoryStretch, dialect: Dialect) -> str:
    """SQL for the gaps between event times of a history: `history_rules.event_gaps`."""
    return dialect.sql(history_rules.event_gaps(project, stretch, dialect))


def order_keys(project: str, stretch: HistoryStretch, dialect: Dialect) -> str:
    """SQL for corrected rows and repeated order keys of a history: `history_rules.order_keys`."""
    return dialect.sql(history_rules.order_keys(project, stretch, dialect))


def history_ddl(project: str, view: FeatureView, dialect: Dialect = DUCKDB) -> list[str]:
    """DDL of the history of `view`, with the indexes that the engine needs."""
    created = history_table.create_history(project, view, dialect)
    return [dialect.sql(statement) for statement in (created, *dialect.indexes(names.history(project, view), view))]
