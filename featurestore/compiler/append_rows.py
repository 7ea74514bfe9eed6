"""What the history already knows of incoming rows: rule 6 of time as a query."""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.names import CREATED, EVENT, INCOMING, ROW, column
from featurestore.feature_view import FeatureView


def known_rows(project: str, view: FeatureView, dialect: Dialect) -> exp.Select:
    """(_row, _same) of the incoming rows whose keys and times history holds; _same: with bit-equal values too.

    The incoming rows stand in `_incoming` with `_row`, join keys, times and fields. History is cut to the event
    times of the batch by parameters $1 and $2, so that row groups of other days are not read.
    """
    same = exp.and_(*(_same_value(field.name, field.dtype, dialect) for field in view.schema))
    history = names.history(project, view).as_("_history")
    equal = [column(name, INCOMING).eq(column(name, "_history")) for name in (*view.join_keys, EVENT, CREATED)]
    between = exp.Between(
        this=column(EVENT, "_history"),
        low=exp.Parameter(this=exp.Literal.number(1)),
        high=exp.Parameter(this=exp.Literal.number(2)),
    )
    return (
        exp.select(column(ROW, INCOMING), exp.alias_(exp.LogicalOr(this=same), "_same"))
        .from_(exp.to_identifier(INCOMING, quoted=True))
        .join(history, on=exp.and_(*equal))
        .where(between)
        .group_by(column(ROW, INCOMING))
    )


def _same_value(name: str, dtype: object, dialect: Dialect) -> exp.Expr:
    ours, theirs = column(name, INCOMING), column(name, "_history")
    both_null = exp.and_(exp.Is(this=ours, expression=exp.Null()), exp.Is(this=theirs, expression=exp.Null()))
    # A null on one side makes `bits_equal` null, which counts as false in the aggregate only through coalesce.
    equal = exp.Coalesce(this=exp.paren(dialect.bits_equal(dtype, ours, theirs)), expressions=[exp.false()])  # type: ignore[arg-type]
    return exp.or_(exp.paren(both_null), equal)
