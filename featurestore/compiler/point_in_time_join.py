"""The rules of time as a query: which history row answers each spine row.

The rules (docs/semantics.md): rows of one entity are ordered by (event_timestamp, created_timestamp, sequence); a
row is visible at t from `visible_from`, the greater of its two times; the value at t is the greatest visible row,
whole. Expiry is decided afterwards, from the event time returned here (`status.py`).

Each pass below adds one step to the WITH chain, in the order of `passes` in `compile.py`. Engines without an as-of
join match otherwise (`greatest_so_far.py`). No as-of match ever has to choose among tied rows, since engines choose as
it happens:

- Rows known from their `created_timestamp`: `leading_rows` orders each entity's rows by (visible_from, order key) and
  keeps a row if it is the running maximum and the last of its `visible_from`. One row is left per instant, and the
  as-of match on `visible_from` has no ties.
- Rows known from their event time need no such order. The as-of match yields the event time alone, a value that all
  tied rows share; `break_ties` then takes the greatest row of (entity, event time), for the matched ones only.

Only narrow columns travel until the last step fetches the fields by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.names import (
    AS_OF,
    CREATED,
    ENTITY,
    EVENT,
    POSITION,
    RANK,
    ROW,
    SEQUENCE,
    SPINE,
    VISIBLE_FROM,
    column,
)
from featurestore.feature_view import FeatureView

KNOWLEDGE = ("created", "event", "as_served")
#: History has at least so many rows for each one that asks (decision 1).
FEW = 100
#: Rule 1: the order of an entity's rows.
_ORDER_KEY = (EVENT, CREATED, SEQUENCE)


@dataclass(frozen=True, kw_only=True, slots=True)
class PointInTimeJoin:
    """What to ask of one view: which fields, from which rows of history, known how.

    `position` pins history: rows committed later do not exist. `knowledge` is "created" (a row is known from its
    created_timestamp), "event" (from its event_timestamp) or "as_served" (from the publish that brought it online: then
    `_as_of` is the number of the last publish acknowledged by then, and the two relations of `names.PUBLISHED_*` say
    what each reached). The spine stands in the relation `_spine` with the
    columns `_row`, the view's join keys (never null) and `_as_of`; `asking` is how many rows it has, where known.
    """

    project: str
    view: FeatureView
    fields: Sequence[str]
    position: int
    knowledge: str = "created"
    asking: int | None = None
    #: As served: whether the log has pushes, which stand in the relation `names.PUSHED_ROWS`.
    pushes: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the view's join keys."""
        return tuple(self.view.join_keys)

    @property
    def known(self) -> str:
        """The step that says of each pinned row when it became known."""
        return "_served" if self.knowledge == "as_served" else "_pinned"

    @property
    def known_at_event(self) -> bool:
        """Whether a row is visible from its event time, so that `visible_from` orders rows as the event time does."""
        return self.knowledge == "event" or (self.knowledge == "created" and not self.view.has_created)

    @property
    def few(self) -> bool:
        """Whether so few rows ask that the rows of their entities are worth keeping; else reading twice is cheaper."""
        return self.asking is not None and self.asking * FEW <= self.position


Pass = Callable[[exp.Select, PointInTimeJoin], exp.Select]


def pinned_rows(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """History up to the pinned position, with the instant each row becomes visible."""
    shown = [*join.keys, *_ORDER_KEY, POSITION]
    rows = (
        exp.select(*_columns(shown), exp.alias_(_visible_from(join), VISIBLE_FROM, quoted=True))
        .from_(names.history(join.project, join.view))
        .where(_pinned(join))
    )
    return tree.with_("_pinned", as_=rows, materialized=False, copy=False)


def asked_entities(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The spine's entities, each with a number that stands for its join keys in what follows.

    A number is quicker to sort and partition by than several keys, and DuckDB 2.0's ASOF join loses rows on some
    pairs of keys (decision 1). Which number an entity gets does not matter, so it is given once (MATERIALIZED).
    """
    keys = _columns(join.keys)
    spine = exp.to_identifier(SPINE, quoted=True)
    number = exp.cast(exp.Window(this=exp.RowNumber()), exp.DType.INT)
    numbered = exp.select(*keys, exp.alias_(number, ENTITY, quoted=True))
    entities = numbered.from_(exp.select(*keys).distinct().from_(spine).subquery("_distinct"))
    using = names.using(*join.keys)
    asking = exp.select(column(ROW), *keys, column(ENTITY), column(AS_OF)).from_(spine).join("_entities", using=using)
    return tree.with_("_entities", as_=entities, materialized=True, copy=False).with_(
        "_asking", as_=asking, materialized=False, copy=False
    )


def asked_rows(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The pinned rows of the spine's entities."""
    shown = _columns((ENTITY, VISIBLE_FROM, *_ORDER_KEY, POSITION))
    rows = exp.select(*shown).from_(join.known).join("_entities", using=names.using(*join.keys))
    return tree.with_("_visible", as_=rows, materialized=join.few, copy=False)


def leading_rows(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """Per entity and `visible_from`, the one row that is the value from then on; a value that came too late is none.

    Where rows are visible from their event time each of them leads, and ties are broken after the match.
    """
    if join.known_at_event:
        return tree
    visible, partition = column(VISIBLE_FROM), [column(ENTITY)]
    rows, place, order_key = "_visible", column(EVENT), list(_ORDER_KEY)
    if join.knowledge == "as_served":
        # Of rows with one event time a greater one may be served earlier: only the whole order key tells.
        tree, rows, place, order_key = _ranked_rows(tree), "_ranked", column(RANK), [RANK]
    order = exp.Order(expressions=[exp.Ordered(this=column(name)) for name in (VISIBLE_FROM, *order_key)])
    so_far = exp.WindowSpec(kind="ROWS", start="UNBOUNDED", start_side="PRECEDING", end="CURRENT ROW")
    greatest = exp.Window(this=exp.Max(this=place), partition_by=partition, order=order, spec=so_far)
    following = exp.Window(this=exp.Lead(this=visible), partition_by=partition, order=order)
    shown = [column(ENTITY), visible, place, column(POSITION)]
    ordered = exp.select(*shown, exp.alias_(greatest, "_greatest"), exp.alias_(following, "_next")).from_(rows)
    last = exp.or_(column("_next").is_(exp.null()), exp.GT(this=column("_next"), expression=visible))
    leading = exp.select(*shown).from_(ordered.subquery("_ordered")).where(place.eq(column("_greatest")), last)
    return tree.with_("_leading", as_=leading, copy=False)


def _ranked_rows(tree: exp.Select) -> exp.Select:
    """The visible rows, each with its place among those of its entity, by rule 1."""
    order = exp.Order(expressions=[exp.Ordered(this=column(name)) for name in _ORDER_KEY])
    rank = exp.Window(this=exp.RowNumber(), partition_by=[column(ENTITY)], order=order)
    ranked = exp.select(*_columns((ENTITY, VISIBLE_FROM, POSITION)), exp.alias_(rank, RANK, quoted=True))
    return tree.with_("_ranked", as_=ranked.from_("_visible"), materialized=False, copy=False)


def match(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The as-of match: the position that answers each spine row, or the event time where ties are still to break."""
    if join.known_at_event:
        entity = [ENTITY] if join.few else join.keys
        rows, step, found = "_visible", "_matched", [*_columns(entity, "_asking"), column(EVENT, "_visible")]
    else:
        rows, step, found = "_leading", "_answers", [column(POSITION, "_leading")]
    same = column(ENTITY, "_asking").eq(column(ENTITY, rows))
    as_of = exp.GTE(this=column(AS_OF, "_asking"), expression=column(VISIBLE_FROM, rows))
    matched = (
        exp.select(column(ROW, "_asking"), *found)
        .from_("_asking")
        .join(exp.Join(this=exp.to_table(rows), method="ASOF", on=exp.and_(same, as_of)))
    )
    return tree.with_(step, as_=matched, materialized=True, copy=False)


def break_ties(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """Of the rows with a matched event time, the greatest; its position answers every spine row that matched it."""
    if not join.known_at_event:
        return tree
    history, event = ("_visible", [ENTITY, EVENT]) if join.few else ("_pinned", [*join.keys, EVENT])
    place = exp.Window(
        this=exp.RowNumber(),
        partition_by=_columns(event),
        order=exp.Order(expressions=[exp.Ordered(this=column(name), desc=True) for name in _ORDER_KEY[1:]]),
    )
    matched = exp.select(*_columns(event), column(POSITION), exp.alias_(place, "_place")).from_(history)
    ranked = matched.join("_matched", join_type="semi", using=names.using(*event)).subquery("_ranked")
    greatest = exp.select(*_columns(event), column(POSITION)).from_(ranked).where(column("_place").eq(1))
    answers = (
        exp.select(column(ROW, "_matched"), column(POSITION, "_greatest"))
        .from_("_matched")
        .join("_greatest", using=names.using(*event))
    )
    return tree.with_("_greatest", as_=greatest, copy=False).with_(
        "_answers", as_=answers, materialized=True, copy=False
    )


def fetch_fields(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The answers' event times and fields, fetched by position: (_row, event_timestamp, fields...), in any order."""
    wanted = [column(ROW, "_answers"), column(EVENT, "_history"), *(column(name, "_history") for name in join.fields)]
    history = names.history(join.project, join.view).as_("_history")
    return (
        tree.select(*wanted)
        .from_("_answers")
        .join(history, on=column(POSITION, "_answers").eq(column(POSITION, "_history")))
    )


def _visible_from(join: PointInTimeJoin) -> exp.Expr:
    if join.knowledge == "event" or not join.view.has_created:
        return column(EVENT)
    return exp.Greatest(this=column(EVENT), expressions=[column(CREATED)], ignore_nulls=True)


def _pinned(join: PointInTimeJoin) -> exp.Expr:
    return exp.LTE(this=column(POSITION), expression=exp.Literal.number(join.position))


def _columns(wanted: Sequence[str], table: str | None = None) -> list[exp.Column]:
    return [column(name, table) for name in wanted]
