"""The projection as a query: per entity the greatest row, by the rules of time, among rows that qualify.

Publish asks for what became due since its last state, verify and `--as-of` for everything visible at an instant.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.names import CREATED, EVENT, POSITION, SCHEMA_ID, SEQUENCE, column
from featurestore.feature_view import FeatureView


@dataclass(frozen=True, kw_only=True, slots=True)
class LatestRows:
    """Which rows of a view's history qualify; times in microseconds since the epoch.

    A row qualifies when its position is at most `position_to`, it is visible by `horizon_to_us`, and it is new:
    its position is past `position_from`, or it became visible after `horizon_from_us` (both None: every row is).
    """

    project: str
    view: FeatureView
    position_to: int
    horizon_to_us: int
    position_from: int | None = None
    horizon_from_us: int | None = None
    knowledge: str = "created"

    @property
    def visible_from(self) -> exp.Expr:
        """The instant a row becomes visible."""
        if self.knowledge == "event" or not self.view.has_created:
            return column(EVENT)
        return exp.Greatest(this=column(EVENT), expressions=[column(CREATED)], ignore_nulls=True)


def latest_rows(query: LatestRows, dialect: Dialect) -> exp.Select:
    """(join keys, event_timestamp, created_timestamp, _sequence, _schema, fields...), one row an entity, any order."""
    keys = tuple(query.view.join_keys)
    narrow = [column(name) for name in (*keys, EVENT, CREATED, SEQUENCE, POSITION)]
    qualifying = exp.select(*narrow).from_(names.history(query.project, query.view)).where(_qualifies(query, dialect))
    newest = (
        exp.select(*map(column, keys), exp.alias_(exp.Max(this=column(EVENT)), EVENT, quoted=True))
        .from_("_qualifying")
        .group_by(*map(column, keys))
    )
    place = exp.Window(
        this=exp.RowNumber(),
        partition_by=list(map(column, keys)),
        order=exp.Order(expressions=[exp.Ordered(this=column(name), desc=True) for name in (CREATED, SEQUENCE)]),
    )
    ranked = exp.select(column(POSITION), exp.alias_(place, "_place")).from_("_qualifying")
    tied = dialect.semi_join(ranked, exp.to_table("_newest"), (*keys, EVENT))
    winners = exp.select(column(POSITION)).from_(tied.subquery("_tied")).where(column("_place").eq(1))
    wanted = (*keys, EVENT, CREATED, SEQUENCE, SCHEMA_ID, *query.view.fields)
    rows = exp.select(*map(column, wanted)).from_(names.history(query.project, query.view))
    # Few columns are cheaper read twice than kept; rows that are stored whole are not.
    kept = False if dialect.columnar else None
    return (
        dialect.semi_join(rows, exp.to_table("_winners"), (POSITION,))
        .with_("_qualifying", as_=qualifying, materialized=kept)
        .with_("_newest", as_=newest)
        .with_("_winners", as_=winners)
    )


def rows_of(project: str, view: FeatureView, dialect: Dialect) -> exp.Select:
    """The history rows whose sequences stand in `_incoming`, in the columns of `latest_rows`."""
    return _incoming_rows(project, view, dialect, (SEQUENCE,))


def rows_at(project: str, view: FeatureView, dialect: Dialect) -> exp.Select:
    """The history rows whose join keys and times stand in `_incoming`, in the columns of `latest_rows`."""
    return _incoming_rows(project, view, dialect, (*view.join_keys, EVENT, CREATED))


def _incoming_rows(project: str, view: FeatureView, dialect: Dialect, by: tuple[str, ...]) -> exp.Select:
    wanted = (*view.join_keys, EVENT, CREATED, SEQUENCE, SCHEMA_ID, *view.fields)
    incoming = exp.Table(this=exp.to_identifier(names.INCOMING, quoted=True))
    rows = exp.select(*map(column, wanted)).from_(names.history(project, view))
    return dialect.semi_join(rows, incoming, by)


def rows_up_to(project: str, view: FeatureView, position: int) -> exp.Select:
    """All history rows up to a position, in the columns of `latest_rows`, in any order."""
    wanted = (*view.join_keys, EVENT, CREATED, SEQUENCE, SCHEMA_ID, *view.fields)
    known = exp.LTE(this=column(POSITION), expression=exp.Literal.number(position))
    return exp.select(*map(column, wanted)).from_(names.history(project, view)).where(known)


def count_pending(query: LatestRows, dialect: Dialect) -> exp.Select:
    """(rows, greatest event time, first instant of visibility) of the qualifying rows."""
    return (
        exp.select(exp.Count(this=exp.Star()), exp.Max(this=column(EVENT)), exp.Min(this=query.visible_from))
        .from_(names.history(query.project, query.view))
        .where(_qualifies(query, dialect))
    )


def known_entities(query: LatestRows, dialect: Dialect) -> exp.Select:
    """The distinct join keys of all qualifying rows."""
    return (
        exp.select(*map(column, query.view.join_keys))
        .distinct()
        .from_(names.history(query.project, query.view))
        .where(_qualifies(query, dialect))
    )


def _qualifies(query: LatestRows, dialect: Dialect) -> exp.Expr:
    due = exp.LTE(this=query.visible_from, expression=dialect.instant(query.horizon_to_us))
    known = exp.LTE(this=column(POSITION), expression=exp.Literal.number(query.position_to))
    if query.position_from is None or query.horizon_from_us is None:
        return exp.and_(known, due)
    arrived = exp.GT(this=column(POSITION), expression=exp.Literal.number(query.position_from))
    ripened = exp.GT(this=query.visible_from, expression=dialect.instant(query.horizon_from_us))
    return exp.and_(known, due, exp.or_(arrived, ripened))
