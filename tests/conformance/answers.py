"""What is compared: per spine row and view a status and the values as texts; from a case, and from the double loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from featurestore.clock import to_us
from featurestore.dtypes import FLOATS, DType, List, Vector
from tests import oracle
from tests.conformance.cases import COUNTS, Answers, Arrival, Ask, Case, CaseField, CaseView, SourceRow
from tests.conformance.texts import text_of
from tests.unit.online import format_reference

#: (status, field -> text); the texts of a row that is not PRESENT are left out, all of them being null.
Answer = tuple[str, Mapping[str, Any]]


def shown(fields: Sequence[CaseField], status: str, values: Mapping[str, Any]) -> Answer:
    """An answer to compare: values that are all null are left out, whatever the status."""
    texts = {each.name: text_of(values.get(each.name), each.dtype) for each in fields}
    return status, texts if any(text is not None for text in texts.values()) else {}


def expected(case: Case, choose: Callable[[Ask], Answers | None]) -> dict[int, dict[str, Answer]]:
    """Spine row -> ref -> answer, as the case says; rows about which it says nothing are left out."""
    return {
        place: {ref: shown(case.views[ref].fields, answer.status, answer.values) for ref, answer in answers.items()}
        for place, ask in enumerate(case.spine)
        if (answers := choose(ask)) is not None
    }


@dataclass
class OracleHistory:
    """One view's history by the double loop: its rows, what was counted per arrival, when it was published."""

    rows: list[oracle.Row] = field(default_factory=list)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    publishes: list[oracle.Publish] = field(default_factory=list)
    sequence: int = 1


def arrive_all(case: Case) -> dict[str, OracleHistory]:
    """The histories of a case's views after all arrivals, by ref."""
    histories = {ref: OracleHistory() for ref in case.views}
    for arrival in case.arrivals:
        _arrive(histories[arrival.view], case.views[arrival.view], arrival)
    return histories


def _arrive(history: OracleHistory, view: CaseView, arrival: Arrival) -> None:
    fields = view.fields_at(arrival.number)
    rows = [row for source in arrival.rows if (row := _row(view, source, fields)) is not None]
    missing = {each.name: each.default for each in fields}
    known = [replace(row, value={**missing, **row.value}) for row in history.rows]
    history.rows, counted = oracle.arrive(known, rows, history.sequence, lambda value: _bits(fields, value))
    history.sequence += len(rows)
    history.counts[arrival.number] = {
        **{name: getattr(counted, name) for name in COUNTS if name != "quarantined"},
        "quarantined": len(arrival.rows) - len(rows),
    }
    if arrival.at_us is not None and arrival.acknowledged_us is not None:
        history.publishes.append(
            oracle.Publish(
                position=len(history.rows),
                horizon=arrival.at_us,
                started=arrival.at_us,
                acknowledged=arrival.acknowledged_us,
            )
        )


def _row(view: CaseView, source: SourceRow, fields: Sequence[CaseField]) -> oracle.Row | None:
    """The row in canonical values; None where the gate refuses it."""
    event = instant_us(view, source.event)
    created = event if source.created is None else instant_us(view, source.created)
    if event is None or created is None or None in source.keys:
        return None
    value = {each.name: canonical(source.values[each.name], each.dtype) for each in fields}
    return oracle.Row(keys=source.keys, event=event, created=created, value=value)


def canonical(value: Any, dtype: DType) -> Any:
    """There is one NaN."""
    match dtype:
        case List(element) | Vector(element):
            return None if value is None else [canonical(item, element) for item in value]
    return float("nan") if dtype in FLOATS and value is not None and value != value else value


def instant_us(view: CaseView, time: datetime) -> int | None:
    """The instant a time of the source means; None for a local time that never was, or was twice without a word."""
    if view.timezone is None:
        return to_us(time)
    zone = ZoneInfo(view.timezone)
    meant = {
        read.astimezone(UTC)
        for read in (time.replace(tzinfo=zone, fold=0), time.replace(tzinfo=zone, fold=1))
        if read.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) == time
    }
    if not meant or (len(meant) == 2 and view.ambiguous is None):
        return None
    return to_us(max(meant) if view.ambiguous == "later" else min(meant))


def _bits(fields: Sequence[CaseField], value: Mapping[str, Any]) -> bytes:
    return format_reference.payload([each.dtype for each in fields], [value[each.name] for each in fields])


def oracle_answers(case: Case, knowledge: str) -> dict[int, dict[str, Answer]]:
    """Spine row -> ref -> answer, by the double loop."""
    histories = arrive_all(case)
    return {
        place: {ref: _answer(view, histories[ref], ask, knowledge) for ref, view in case.views.items()}
        for place, ask in enumerate(case.spine)
    }


def _answer(view: CaseView, history: OracleHistory, ask: Ask, knowledge: str) -> Answer:
    keys = tuple(ask.keys[name] for name in view.keys)
    if knowledge == "as_served":
        row = oracle.served(history.rows, keys, ask.as_of_us, history.publishes)
    else:
        row = oracle.answer(history.rows, keys, ask.as_of_us, position=len(history.rows), knowledge=knowledge)
    status = oracle.status(row, ask.as_of_us, view.ttl_us, lambda value: all(item is None for item in value.values()))
    # A field that came after the last row was written holds its default.
    late = {each.name: each.default for each in view.fields}
    return shown(view.fields, status, {**late, **row.value} if row is not None and status == "PRESENT" else {})
