"""The match of the point-in-time join for engines without an as-of join: a running maximum over history and spine.

Rows of history and rows that ask stand in one relation, per entity in the order of time; the greatest order key so far
is the answer's. An instant's rows are peers, so a row answers from the instant on at which it becomes visible.
"""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler.names import (
    AS_OF,
    CREATED,
    ENTITY,
    EVENT,
    POSITION,
    RANK,
    ROW,
    SEQUENCE,
    VISIBLE_FROM,
    column,
)
from featurestore.compiler.point_in_time_join import PointInTimeJoin

_AT = "_at"
#: The order key of rule 1 and the position, which names the row.
_RANKED = (EVENT, CREATED, SEQUENCE, POSITION)


def greatest_so_far(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The position that answers each spine row: the running maximum of (event, created, sequence, position)."""
    rank = exp.Array(expressions=[_number(name) for name in _RANKED])
    known = exp.select(
        column(ENTITY), _as(column(VISIBLE_FROM), _AT), _as(rank, RANK), _as(exp.cast(exp.null(), "BIGINT"), ROW)
    ).from_("_visible")
    asking = exp.select(
        column(ENTITY), column(AS_OF), exp.cast(exp.null(), "BIGINT[]", dialect="postgres"), column(ROW)
    ).from_("_asking")
    greatest = exp.Window(
        this=exp.Max(this=column(RANK)),
        partition_by=[column(ENTITY)],
        order=exp.Order(expressions=[exp.Ordered(this=column(_AT))]),
        spec=exp.WindowSpec(kind="RANGE", start="UNBOUNDED", start_side="PRECEDING", end="CURRENT ROW"),
    )
    merged = exp.union(known, asking, distinct=False).subquery("_merged")
    ranked = exp.select(column(ROW), _as(greatest, RANK)).from_(merged).subquery("_ranked")
    place = exp.Literal.number(_RANKED.index(POSITION))
    position = exp.Bracket(this=column(RANK), expressions=[place], offset=0)
    answered = exp.and_(column(ROW).is_(exp.null()).not_(), column(RANK).is_(exp.null()).not_())
    answers = exp.select(column(ROW), _as(position, POSITION)).from_(ranked).where(answered)
    return tree.with_("_answers", as_=answers, materialized=True, copy=False)


def _number(name: str) -> exp.Expr:
    """A number that orders as the column does; times as microseconds, exact."""
    if name not in (EVENT, CREATED):
        return column(name)
    seconds = exp.Extract(this=exp.var("EPOCH"), expression=column(name))
    return exp.cast(exp.Mul(this=seconds, expression=exp.Literal.number(1_000_000)), "BIGINT")


def _as(value: exp.Expr, name: str) -> exp.Expr:
    return exp.alias_(value, name, quoted=True)
