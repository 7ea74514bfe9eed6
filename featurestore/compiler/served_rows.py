"""As-served knowledge: a row becomes visible with the first publish that covers its position and its visibility.

Two small relations say how far the publishes reached, in positions and in horizons (`offline/served.py`). In each the
least `_up_to` that is not below a row's value names the publish; the later of the two takes the place of
`visible_from`. Rows that no publish covers were never served.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.names import CREATED, EVENT, POSITION, PUBLISH, SEQUENCE, UP_TO, VISIBLE_FROM, column
from featurestore.compiler.point_in_time_join import PointInTimeJoin

_Lookup = Callable[[str, str, exp.Expr], exp.Join]


def served_by_as_of(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The pass for engines with an as-of join."""
    return _served(tree, join, _as_of)


def served_by_lookup(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The pass for engines without."""
    return _served(tree, join, _lookup)


def _served(tree: exp.Select, join: PointInTimeJoin, lookup: _Lookup) -> exp.Select:
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
    return tree.with_("_served", as_=served, materialized=False, copy=False)


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
