"""Expectations of a history as a whole, each as a query of one row of whole numbers; times in microseconds."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from featurestore.clock import MICROSECOND, TIMESTAMP_MIN_US
from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.names import CREATED, EVENT, POSITION, SEQUENCE, column
from featurestore.feature_view import FeatureView


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryStretch:
    """Which rows of a view's history are judged: up to a position, with event times in [start_us, end_us)."""

    view: FeatureView
    position: int
    start_us: int | None = None
    end_us: int | None = None

    def rows(self, project: str, dialect: Dialect, *columns: exp.Expr) -> exp.Select:
        """These columns of the rows."""
        within: list[exp.Expr] = [exp.LTE(this=column(POSITION), expression=exp.Literal.number(self.position))]
        if self.start_us is not None:
            within.append(exp.GTE(this=column(EVENT), expression=dialect.instant(self.start_us)))
        if self.end_us is not None:
            within.append(exp.LT(this=column(EVENT), expression=dialect.instant(self.end_us)))
        return exp.select(*columns).from_(names.history(project, self.view)).where(exp.and_(*within))


def row_volume(project: str, stretch: HistoryStretch, dialect: Dialect) -> exp.Select:
    """(rows, windows, too_few, too_many, fewest, most, first_broken_us) of the declared windows.

    Windows without rows between others count. The first and the last may be cut short: neither is too few.
    """
    volume = stretch.view.volume
    assert volume is not None
    per = volume.per // MICROSECOND
    # Windows count from 1970; shifted by whole windows so that no number is negative.
    shift = -(TIMESTAMP_MIN_US // per) * per
    shifted = exp.Add(this=dialect.microseconds(column(EVENT)), expression=exp.Literal.number(shift))
    window = exp.cast(exp.IntDiv(this=exp.paren(shifted), expression=exp.Literal.number(per)), "BIGINT")
    counted = stretch.rows(
        project, dialect, exp.alias_(window, "w"), exp.alias_(exp.Count(this=exp.Star()), "n")
    ).group_by("1")
    placed = exp.select(
        "w", "n", "lag(w) OVER (ORDER BY w) AS before", "min(w) OVER () AS first", "max(w) OVER () AS last"
    ).from_("_counted")
    least, most = volume.at_least or 0, volume.at_most
    inside = "w > first AND w < last"
    few = f"({inside} AND n < {int(least)})"
    many = "false" if most is None else f"n > {int(most)}"
    empty = "(before IS NOT NULL AND w > before + 1)"
    lacking = empty if least else "false"
    start = f"CASE WHEN {lacking} THEN before + 1 WHEN {few} OR {many} THEN w END"
    figures = {
        "rows": "coalesce(sum(n), 0)",
        "windows": "coalesce(max(w) - min(w) + 1, 0)",
        "too_few": f"coalesce(sum({_number(few)} + CASE WHEN {lacking} THEN w - before - 1 ELSE 0 END), 0)",
        "too_many": f"coalesce(sum({_number(many)}), 0)",
        "fewest": f"min(CASE WHEN {empty} THEN 0 WHEN {inside} THEN n END)",
        "most": "max(n)",
        "first_broken_us": f"min({start}) * {per} - {shift}",
    }
    return _figures(figures).from_("_placed").with_("_counted", as_=counted).with_("_placed", as_=placed)


def event_gaps(project: str, stretch: HistoryStretch, dialect: Dialect) -> exp.Select:
    """(gaps, largest_us, from_us): how many are longer than declared, the largest one and where it begins.

    A gap lies between an event time and the next one of the view, whatever entities they are of.
    """
    limit = stretch.view.largest_gap
    assert limit is not None
    times = stretch.rows(project, dialect, exp.alias_(dialect.microseconds(column(EVENT)), "us")).distinct()
    gaps = exp.select("us", "us - lag(us) OVER (ORDER BY us) AS gap").from_("_times")
    widest = exp.select("max(gap) AS widest").from_("_gaps")
    figures = {
        "gaps": f"coalesce(sum({_number(f'gap > {limit // MICROSECOND}')}), 0)",
        "largest_us": "max(gap)",
        "from_us": "min(CASE WHEN gap = widest THEN us - gap END)",
    }
    return (
        _figures(figures)
        .from_("_gaps")
        .join("_widest", join_type="cross")
        .with_("_times", as_=times)
        .with_("_gaps", as_=gaps)
        .with_("_widest", as_=widest)
    )


def order_keys(project: str, stretch: HistoryStretch, dialect: Dialect) -> exp.Select:
    """(rows, corrected, repeated): rows that a correction replaced; order keys that several rows of an entity hold.

    A repeated order key must not be: the order of an entity's rows would not be total.
    """
    places = [column(name) for name in (*stretch.view.join_keys, EVENT, CREATED)]
    count = exp.alias_(exp.Count(this=exp.Star()), "n")
    corrected = stretch.rows(project, dialect, count).group_by(*places)
    held = stretch.rows(project, dialect, count.copy()).group_by(*places, column(SEQUENCE))
    repeated = exp.select(f"coalesce(sum({_number('n > 1')}), 0) AS repeated").from_(held.subquery("_held"))
    totals = exp.select("coalesce(sum(n), 0) AS total", "coalesce(sum(n - 1), 0) AS corrected").from_(
        corrected.subquery("_corrected")
    )
    return (
        _figures({"rows": "total", "corrected": "corrected", "repeated": "repeated"})
        .from_("_totals")
        .join("_repeats", join_type="cross")
        .with_("_totals", as_=totals)
        .with_("_repeats", as_=repeated)
    )


def _number(condition: str) -> str:
    return f"CASE WHEN {condition} THEN 1 ELSE 0 END"


def _figures(figures: dict[str, str]) -> exp.Select:
    return exp.select(*(exp.alias_(exp.cast(exp.maybe_parse(sql), "BIGINT"), name) for name, sql in figures.items()))
