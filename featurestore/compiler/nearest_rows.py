"""The point-in-time join by lookups: for each spine row the greatest visible row, found by an index from `as_of` down.

The index orders an entity's rows as rule 1 does, so the first visible row at or below `as_of` is the answer. Rows not
visible at `as_of` (known later, or committed past the pinned position) are passed over; where that takes more than
ROWS_PASSED_MAX rows, as after a backfill, the spine row is marked `_far` and left to the join over all rows.
"""

from __future__ import annotations

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.names import AS_OF, CREATED, EVENT, FAR, POSITION, ROW, SEQUENCE, SPINE, column
from featurestore.compiler.point_in_time_join import PointInTimeJoin

#: Rows one lookup looks at. More costs where many rows are known late; fewer sends more spine rows the long way.
ROWS_PASSED_MAX = 100


def nearest_rows(join: PointInTimeJoin) -> exp.Select:
    """(_row, event_timestamp, fields..., _far), one row for each spine row that is answered or far."""
    asking = exp.to_identifier("_asking", quoted=True)
    # In the order of the index, neighbours are looked up one after the other.
    order = [column(name) for name in (*join.keys, AS_OF)]
    spine = exp.select("*").from_(exp.to_identifier(SPINE, quoted=True)).order_by(*order).subquery(asking)
    near = dict.fromkeys((EVENT, CREATED, SEQUENCE, POSITION, *join.fields))  # parts of the order key may be asked for
    looked_at = _below(join).select(*(column(name) for name in near)).limit(ROWS_PASSED_MAX)
    visible: exp.Expr = exp.LTE(this=column(POSITION), expression=exp.Literal.number(join.position))
    if not join.known_at_event:
        visible = exp.and_(visible, exp.LTE(this=column(CREATED), expression=column(AS_OF, "_asking")))
    found = exp.select("*").from_(looked_at.subquery("_looked_at")).where(visible).order_by(*_greatest_first()).limit(1)
    nothing = column(POSITION, "_found").is_(exp.null())
    beyond = _below(join).select(exp.alias_(exp.true(), FAR, quoted=True)).where(nothing)
    beyond = beyond.limit(1).offset(ROWS_PASSED_MAX - 1)
    far = exp.Coalesce(this=column(FAR, "_beyond"), expressions=[exp.false()])
    shown = [column(ROW, "_asking"), *(column(name, "_found") for name in (EVENT, *join.fields))]
    return (
        exp.select(*shown, exp.alias_(far, FAR, quoted=True))
        .from_(spine)
        .join(_lateral(found, "_found"), copy=False)
        .join(_lateral(beyond, "_beyond"), copy=False)
        .where(exp.or_(column(POSITION, "_found").is_(exp.null()).not_(), column(FAR, "_beyond")))
    )


def _below(join: PointInTimeJoin) -> exp.Select:
    """The rows of the asking entity at or before its `as_of`, the greatest first."""
    same = [column(name, "_history").eq(column(name, "_asking")) for name in join.keys]
    at = exp.LTE(this=column(EVENT, "_history"), expression=column(AS_OF, "_asking"))
    history = names.history(join.project, join.view).as_("_history")
    return exp.Select().from_(history).where(*same, at).order_by(*_greatest_first())


def _greatest_first() -> list[exp.Expr]:
    # nulls_first: what DESC means here, and what a backward scan of the index gives (none of them is ever null).
    return [exp.Ordered(this=column(name), desc=True, nulls_first=True) for name in (EVENT, CREATED, SEQUENCE)]


def _lateral(rows: exp.Select, name: str) -> exp.Join:
    lateral = exp.Lateral(this=rows.subquery(), alias=exp.TableAlias(this=exp.to_identifier(name, quoted=True)))
    return exp.Join(this=lateral, side="LEFT", on=exp.true())
