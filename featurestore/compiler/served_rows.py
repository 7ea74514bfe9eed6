"""As-served knowledge: a row becomes visible with the first publish that covers its position and its visibility.

Two small relations say how far the publishes reached, in positions and in horizons (`offline/served.py`). In each the
least `_up_to` that is not below a row's value names the publish; the later of the two takes the place of
`visible_from`. Rows that no publish covers were never served.

Where the log has pushes, a third relation names their blocks of sequences. A row of such a block is served from the
push too; it then stands twice in `_served`, which changes no answer: the earlier time is the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.names import (
    CREATED,
    EVENT,
    FIRST,
    HORIZON,
    LAST,
    POSITION,
    PUBLISH,
    PUSHED_ROWS,
    SEQUENCE,
    UP_TO,
    VISIBLE_FROM,
    column,
)
from featurestore.compiler.point_in_time_join import PointInTimeJoin

_Lookup = Callable[[str, str, exp.Expr], exp.Join]
_PUSH = "_push"


def served_by_as_of(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The pass for engines with an as-of join."""
    return _served(tree, join, _as_of, _push_as_of)


def served_by_lookup(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The pass for engines without."""
    return _served(tree, join, _lookup, _push_lookup)


def _served(
    tree: exp.Select, join: PointInTimeJoin, lookup: _Lookup, push_lookup: Callable[[], exp.Join]
) -> exp.Select:
    if join.knowledge != "as_served":
        return tree
    shown = [column(name, "_pinned") for name in (*join.keys, EVENT, CREATED, SEQUENCE, POSITION)]
    later = exp.Greatest(
        this=column(PUBLISH, "_by_position"), expressions=[column(PUBLISH, "_by_horizon")], ignore_nulls=True
    )
    served = (
        exp.select(*shown, exp.alias_(later, VISIBLE_FROM, quoted=True))
        .from_("_pinned")
        .join(lookup(names.PUBLISHED_POSITIONS, "_by_position", column(POSITION, "_pinned")))
        .join(lookup(names.PUBLISHED_HORIZONS, "_by_horizon", column(VISIBLE_FROM, "_pinned")))
    )
    if not join.pushes:
        return tree.with_("_served", as_=served, materialized=False, copy=False)
    inside = exp.LTE(this=column(SEQUENCE, "_pinned"), expression=column(LAST, _PUSH))
    visible = exp.LTE(this=column(VISIBLE_FROM, "_pinned"), expression=column(HORIZON, _PUSH))
    pushed = (
        exp.select(*shown, exp.alias_(column(PUBLISH, _PUSH), VISIBLE_FROM, quoted=True))
        .from_("_pinned")
        .join(push_lookup())
        .where(inside, visible)
    )
    return tree.with_("_served", as_=exp.union(served, pushed, distinct=False), materialized=False, copy=False)


def _push_as_of() -> exp.Join:
    """Blocks of sequences do not overlap, so the one that begins last is the only one that may hold a row."""
    table = exp.Table(this=exp.to_identifier(PUSHED_ROWS, quoted=True)).as_(_PUSH)
    begun = exp.GTE(this=column(SEQUENCE, "_pinned"), expression=column(FIRST, _PUSH))
    return exp.Join(this=table, method="ASOF", on=begun)


def _push_lookup() -> exp.Join:
    begun = (
        exp.select(column(PUBLISH), column(LAST), column(HORIZON))
        .from_(exp.Table(this=exp.to_identifier(PUSHED_ROWS, quoted=True)))
        .where(exp.LTE(this=column(FIRST), expression=column(SEQUENCE, "_pinned")))
        .order_by(exp.Ordered(this=column(FIRST), desc=True))
        .limit(1)
    )
    lateral = exp.Lateral(this=begun.subquery(), alias=exp.TableAlias(this=exp.to_identifier(_PUSH)))
    return exp.Join(this=lateral, kind="CROSS")


def _as_of(reached: str, alias: str, value: exp.Expr) -> exp.Join:
    """No ties: each `_up_to` stands once."""
    table = exp.Table(this=exp.to_identifier(reached, quoted=True)).as_(alias)
    return exp.Join(this=table, method="ASOF", on=exp.LTE(this=value, expression=column(UP_TO, alias)))


def _lookup(reached: str, alias: str, value: exp.Expr) -> exp.Join:
    """The least `_up_to` names the least publish, since both only grow."""
    covering = (
        exp.select(column(PUBLISH))
        .from_(exp.Table(this=exp.to_identifier(reached, quoted=True)))
        .where(exp.GTE(this=column(UP_TO), expression=value))
        .order_by(column(PUBLISH))
        .limit(1)
    )
    lateral = exp.Lateral(this=covering.subquery(), alias=exp.TableAlias(this=exp.to_identifier(alias)))
    return exp.Join(this=lateral, kind="CROSS")
