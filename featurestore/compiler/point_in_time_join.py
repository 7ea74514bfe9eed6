"""The rules of time as a query: which history row answers each spine row.

The rules (docs/semantics.md): rows of one entity are ordered by (event_timestamp, created_timestamp, sequence); a
row is visible at t from `visible_from`, the greater of its two times; the value at t is the greatest visible row,
whole. Expiry is decided afterwards, from the event time returned here (`status.py`).

Each pass below adds one step to the WITH chain, in the order of PASSES in `compile.py`. The match is made on values
that do not depend on which of several tied rows an engine happens to pick:

- `running_maximum` keeps the rows whose event time is the greatest among all rows visible by then. The as-of match
  on `visible_from` then yields the event time M that rule 4 chooses: a value, equal for all tied rows.
- `candidates` takes the rows of each (entity, M); `latest_version` numbers those visible at the same instant by
  (created, sequence) and keeps one, so that the second as-of match, within (entity, M), has no ties at all.

Only narrow columns travel until the last step fetches the fields by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.names import AS_OF, CREATED, EVENT, POSITION, ROW, SEQUENCE, SPINE, VISIBLE_FROM, column
from featurestore.feature_view import FeatureView

KNOWLEDGE = ("created", "event")


@dataclass(frozen=True, kw_only=True, slots=True)
class PointInTimeJoin:
    """What to ask of one view: which fields, from which rows of history, known how.

    `position` pins history: rows committed later do not exist. `knowledge` is "created" (a row is known from its
    created_timestamp) or "event" (from its event_timestamp). The spine stands in the relation `_spine` with the
    columns `_row`, the view's join keys (never null) and `_as_of`.
    """

    project: str
    view: FeatureView
    fields: Sequence[str]
    position: int
    knowledge: str = "created"

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the view's join keys."""
        return tuple(self.view.join_keys)

    @property
    def known_at_event(self) -> bool:
        """Whether a row is visible from its event time, so that `visible_from` orders rows as the event time does."""
        return self.knowledge == "event" or not self.view.has_created


Pass = Callable[[exp.Select, PointInTimeJoin], exp.Select]


def visible_rows(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """History up to the pinned position, cut to the spine's entities, with the instant each row becomes visible."""
    asked = exp.select(*map(column, join.keys)).distinct().from_(exp.to_identifier(SPINE, quoted=True))
    visible_from: exp.Expr = column(EVENT)
    if not join.known_at_event:
        visible_from = exp.Greatest(this=column(EVENT), expressions=[column(CREATED)], ignore_nulls=True)
    rows = (
        exp.select(
            *map(column, join.keys),
            exp.alias_(visible_from, VISIBLE_FROM, quoted=True),
            *map(column, (EVENT, CREATED, SEQUENCE, POSITION)),
        )
        .from_(names.history(join.project, join.view))
        .join("_asked", join_type="semi", using=names.using(*join.keys))
        .where(exp.LTE(this=column(POSITION), expression=exp.Literal.number(join.position)))
    )
    return tree.with_("_asked", as_=asked, copy=False).with_("_visible", as_=rows, copy=False)


def running_maximum(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The rows whose event time is the greatest of all rows of their entity visible by then.

    Rows known at their event time are all of them; the others pay one window over (entity, visible_from).
    """
    shown = [*map(column, join.keys), column(VISIBLE_FROM), column(EVENT)]
    if join.known_at_event:
        return tree.with_("_leading", as_=exp.select(*shown).from_("_visible"))
    # The default frame includes peers: all rows that become visible at the same instant count at once.
    greatest = exp.Window(
        this=exp.Max(this=column(EVENT)),
        partition_by=list(map(column, join.keys)),
        order=exp.Order(expressions=[exp.Ordered(this=column(VISIBLE_FROM))]),
    )
    ranked = exp.select(*shown, exp.alias_(greatest, "_greatest")).from_("_visible")
    leading = exp.select(*shown).from_(ranked.subquery("_ranked")).where(column(EVENT).eq(column("_greatest")))
    return tree.with_("_leading", as_=leading, copy=False)


def match_event(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The event time that answers each spine row: one as-of match on the instant of visibility."""
    chosen = [column(ROW, SPINE), *(column(key, SPINE) for key in join.keys), column(AS_OF, SPINE)]
    matched = (
        exp.select(*chosen, column(EVENT, "_leading"))
        .from_(exp.to_identifier(SPINE, quoted=True))
        .join(exp.Join(this=exp.to_table("_leading"), method="ASOF", on=_as_of(SPINE, "_leading", join.keys)))
    )
    return tree.with_("_matched", as_=matched, materialized=True, copy=False)


def candidates(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """Every visible row of the entities and event times that were matched."""
    using = names.using(*join.keys, EVENT)
    wanted = [*join.keys, EVENT, VISIBLE_FROM, CREATED, SEQUENCE, POSITION]
    rows = exp.select(*map(column, wanted)).from_("_visible").join("_matched", join_type="semi", using=using)
    return tree.with_("_candidates", as_=rows, copy=False)


def latest_version(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """Of the candidates that become visible at the same instant, the greatest by (created, sequence)."""
    place = exp.Window(
        this=exp.RowNumber(),
        partition_by=[column(name) for name in (*join.keys, EVENT, VISIBLE_FROM)],
        order=exp.Order(expressions=[exp.Ordered(this=column(name), desc=True) for name in (CREATED, SEQUENCE)]),
    )
    wanted = [column(name) for name in (*join.keys, EVENT, VISIBLE_FROM, POSITION)]
    numbered = exp.select(*wanted, exp.alias_(place, "_place")).from_("_candidates")
    latest = exp.select(*wanted).from_(numbered.subquery("_numbered")).where(column("_place").eq(1))
    return tree.with_("_versions", as_=latest, copy=False)


def match_version(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The one row that answers each spine row: an as-of match without ties, within entity and event time."""
    matched = (
        exp.select(column(ROW, "_matched"), column(POSITION, "_versions"))
        .from_("_matched")
        .join(
            exp.Join(
                this=exp.to_table("_versions"),
                method="ASOF",
                on=_as_of("_matched", "_versions", (*join.keys, EVENT)),
            )
        )
    )
    return tree.with_("_answers", as_=matched, materialized=True, copy=False)


def fetch_fields(tree: exp.Select, join: PointInTimeJoin) -> exp.Select:
    """The answers' event times and fields, fetched by position: (_row, event_timestamp, fields...), in any order."""
    wanted = [column(ROW, "_answers"), column(EVENT, "_history"), *(column(name, "_history") for name in join.fields)]
    history = names.history(join.project, join.view).as_("_history")
    return (
        tree.select(*wanted)
        .from_("_answers")
        .join(history, on=column(POSITION, "_answers").eq(column(POSITION, "_history")))
    )


def _as_of(left: str, right: str, equal: Sequence[str]) -> exp.Expr:
    """Equal on the named columns, and the right side visible by the left side's as_of."""
    same = [column(name, left).eq(column(name, right)) for name in equal]
    return exp.and_(*same, exp.GTE(this=column(AS_OF, left), expression=column(VISIBLE_FROM, right)))
