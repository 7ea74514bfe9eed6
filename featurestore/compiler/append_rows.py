"""What the history already knows of incoming rows: rule 6 of time as a query."""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.names import CREATED, EVENT, INCOMING, POSITION, ROW, column
from featurestore.feature_view import FeatureView


def known_rows(project: str, view: FeatureView, dialect: Dialect) -> exp.Select:
    """(_row, _same) of the incoming rows whose keys and times history holds; _same: with bit-equal values too.

    The incoming rows stand in `_incoming` with `_row`, join keys, times and fields. History is cut to the event
    times of the batch by parameters $1 and $2, so that row groups of other days are not read. Where an engine stores
    columns, rows are met on keys and times alone: fields are read only where they meet, by position.
    """
    history = names.history(project, view).as_("_history")
    incoming = exp.to_identifier(INCOMING, quoted=True)
    equal = [column(name, INCOMING).eq(column(name, "_history")) for name in (*view.join_keys, EVENT, CREATED)]
    between = exp.Between(
        this=column(EVENT, "_history"),
        low=exp.Parameter(this=exp.Literal.number(1)),
        high=exp.Parameter(this=exp.Literal.number(2)),
    )
    met = exp.Select().from_(incoming).join(history, on=exp.and_(*equal)).where(between)
    same = exp.LogicalOr(this=exp.and_(*(_same_value(field.name, field.dtype, dialect) for field in view.schema)))
    if not dialect.columnar:
        return met.select(column(ROW, INCOMING), exp.alias_(same, "_same")).group_by(column(ROW, INCOMING))
    return (
        exp.select(column(ROW, "_met"), exp.alias_(same, "_same"))
        .with_("_met", as_=met.select(column(ROW, INCOMING), column(POSITION, "_history")), materialized=True)
        .from_("_met")
        .join(exp.Table(this=incoming.copy()), on=column(ROW, "_met").eq(column(ROW, INCOMING)))
        .join(history.copy(), on=column(POSITION, "_met").eq(column(POSITION, "_history")))
        .group_by(column(ROW, "_met"))
    )


def _same_value(name: str, dtype: object, dialect: Dialect) -> exp.Expr:
    ours, theirs = column(name, INCOMING), column(name, "_history")
    both_null = exp.and_(exp.Is(this=ours, expression=exp.Null()), exp.Is(this=theirs, expression=exp.Null()))
    # A null on one side makes `bits_equal` null, which counts as false in the aggregate only through coalesce.
    equal = exp.Coalesce(this=exp.paren(dialect.bits_equal(dtype, ours, theirs)), expressions=[exp.false()])  # type: ignore[arg-type]
    return exp.or_(exp.paren(both_null), equal)
