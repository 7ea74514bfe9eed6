"""The gate: source rows in, canonical rows that keep the contract out, the rest set aside with its reason.

Every way in passes here: loads and pushes, request fields and spines. It works per column; only a row that is set
aside costs work of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.compiler.names import CREATED, EVENT
from featurestore.dtypes import DType, Timestamp
from featurestore.errors import ContractViolation, SourceError
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.ingest.breach import Breach, Mask, count_by_rule, first_breaches
from featurestore.ingest.canonical import Converted, Reading, convert
from featurestore.ingest.row_rules import KnownEntities, RowRules
from featurestore.ingest.rules import Rule, field_rules
from featurestore.ingest.set_aside import Judgements, set_aside
from featurestore.ingest.source_batch import RowWindow, SourceBatch

#: The rule broken by a value that has no exact canonical form of the declared type.
DTYPE_RULE = "dtype"
NOT_NULL_RULE = "not_null"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What came through: `rows` has join keys, event_timestamp, created_timestamp and fields, in source order."""

    rows: pa.Table
    refused: pa.Table | None = None
    #: "column:rule" -> rows that break it, whether they were kept (warn) or not.
    breaches: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    #: Rows kept although they break a rule.
    warned: int = 0

    @property
    def quarantined(self) -> int:
        """How many rows are set aside."""
        return 0 if self.refused is None else int(self.refused.num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejections:
    """Refused rows, aligned columns: the number of each row, and of its first breach the field, rule, reason, value.

    A value is the text that JSON has for it.
    """

    rows: NDArray[np.int64]
    fields: list[str]
    rules: list[str]
    reasons: list[str]
    values: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def listed(self, count: int) -> list[tuple[int, str, str, str, str]]:
        """The first of them, one by one: (row, field, rule, reason, value)."""
        rows = self.rows[:count].tolist()
        texts = (column[:count] for column in (self.fields, self.rules, self.reasons, self.values))
        return list(zip(rows, *texts, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sorted:
    """A batch of which each row stands for itself: `rows` came through, from the places `places` of the batch."""

    rows: pa.Table
    places: NDArray[np.int64]
    rejections: Rejections
    #: What goes into quarantine, where the view says so.
    refused: pa.Table | None


class Gate:
    """Checks batches of one view's source against the view's contract."""

    def __init__(self, view: FeatureView, run: str, at_us: int, known: KnownEntities | None = None) -> None:
        """`at_us` is the clock's time; `known` is needed by a view with references to others."""
        self._view = view
        self._row_rules = RowRules(view, at_us, known)
        self._run = run
        self._at_us = at_us
        self._rules = {declared.name: tuple(field_rules(declared)) for declared in view.schema}
        self._required: dict[str, tuple[str, DType]] = {
            **{name: (name, dtype) for name, dtype in view.join_keys.items()},
            EVENT: (view.source.timestamp_field, Timestamp),
        }
        if view.source.created_timestamp_column is not None:
            self._required[CREATED] = (view.source.created_timestamp_column, Timestamp)

    def check(self, batch: SourceBatch, window: RowWindow | None = None) -> Passed:
        """The batch's rows that keep the contract; ContractViolation when the view rejects and one does not.

        Rows whose event time lies outside `window` are left for another load, unchecked.
        """
        self._need_columns(batch)
        inside, batch = self._inside(batch, self._reading(batch), window)
        rows, breaches = self._compared(batch)
        return self._judged(rows, breaches, batch, inside)

    def sort_out(self, batch: SourceBatch, *, keep_refused: bool = False) -> Sorted:
        """The batch row by row: one that breaks the contract is refused, unless the view warns, and the others pass.

        `keep_refused`: every refused row comes in the shape of quarantine, also where the view rejects.
        """
        self._need_columns(batch)
        rows, breaches = self._compared(batch)
        refusing = [breach for breach in breaches if breach.refuses]
        bad, first = first_breaches(refusing, rows.num_rows)
        places = np.flatnonzero(bad)
        named = [refusing[index] for index in first[places]]
        rejections = Rejections(
            rows=batch.row_numbers[places],
            fields=[breach.column for breach in named],
            rules=[breach.rule for breach in named],
            reasons=[breach.says for breach in named],
            values=[batch.values_text(breach.shows, int(place)) for breach, place in zip(named, places, strict=True)],
        )
        if keep_refused:
            refused = self._quarantine_rows(refusing, bad, first, batch) if bad.any() else None
        else:
            refused = self._aside(refusing, batch)
        return Sorted(
            rows=rows.filter(pa.array(~bad)), places=np.flatnonzero(~bad), rejections=rejections, refused=refused
        )

    def _aside(self, refusing: Sequence[Breach], batch: SourceBatch) -> pa.Table | None:
        """The refused rows that go into quarantine: those that break no rule which rejects."""
        rejected = np.zeros(batch.rows.num_rows, dtype=bool)
        for breach in refusing:
            if breach.on_violation == "reject":
                rejected |= breach.rows
        setting_aside = [breach for breach in refusing if breach.on_violation != "reject"]
        broken, first = first_breaches(setting_aside, batch.rows.num_rows)
        bad = broken & ~rejected
        return self._quarantine_rows(setting_aside, bad, first, batch) if bad.any() else None

    def _reading(self, batch: SourceBatch) -> Reading:
        source = self._view.source
        return Reading(timezone=source.timezone, ambiguous=source.ambiguous, text=batch.text)

    def _compared(self, batch: SourceBatch) -> tuple[pa.Table, list[Breach]]:
        """(canonical rows, the breaches there are)."""
        reading = self._reading(batch)
        columns: dict[str, pa.Array] = {}
        found = [*self._structural(batch, reading, columns), *self._contract(batch, reading, columns)]
        breaches = [breach for breach in found if breach.rows.any()]
        columns.setdefault(CREATED, columns[EVENT])
        order = [*self._view.join_keys, EVENT, CREATED, *self._view.fields]
        rows = pa.table({name: columns[name] for name in order})
        unsound, _ = first_breaches([breach for breach in breaches if breach.structural], rows.num_rows)
        breaches += [breach for breach in self._row_rules.breaches(rows, unsound) if breach.rows.any()]
        return rows, breaches

    def _need_columns(self, batch: SourceBatch) -> None:
        needed = [*(source for source, _ in self._required.values()), *self._view.fields]
        missing = [name for name in needed if name not in batch.rows.column_names]
        repeated = [name for name in dict.fromkeys(needed) if batch.rows.column_names.count(name) > 1]
        if repeated:
            raise SourceError(
                f"feature view {self._view.ref}: {batch.source} has several columns named "
                f"{', '.join(map(repr, repeated))}; rename all but one in the source"
            )
        if missing:
            columns = "the column" if len(missing) == 1 else "the columns"
            raise SourceError(
                f"feature view {self._view.ref}: {batch.source} lacks {columns} {', '.join(map(repr, missing))}; "
                f"it has: {', '.join(batch.rows.column_names)}"
            )

    def _inside(self, batch: SourceBatch, reading: Reading, window: RowWindow | None) -> tuple[int, SourceBatch]:
        """(rows left out, the rest); a row without usable times stays in, to be refused by name."""
        if window is None or window.unbounded:
            return 0, batch
        times = {
            name: self._converted(batch, source, dtype, reading).values
            for name, (source, dtype) in self._required.items()
            if name in (EVENT, CREATED)
        }
        keep = window.holds(times[EVENT], times.get(CREATED))
        return int(np.count_nonzero(~keep)), batch.filtered(keep)

    def _structural(self, batch: SourceBatch, reading: Reading, columns: dict[str, pa.Array]) -> Iterator[Breach]:
        """Join keys and times: never null, always exact."""
        for name, (source, dtype) in self._required.items():
            converted = self._converted(batch, source, dtype, reading)
            columns[name] = converted.values
            faults = converted.fault_mask
            nulls = converted.values.is_null().to_numpy(zero_copy_only=False) & ~faults
            yield _dtype_breach(source, dtype, faults, self._view.on_violation)
            yield Breach(
                column=source,
                rule=NOT_NULL_RULE,
                says=f"{source} is null",
                rows=nulls,
                on_violation=self._view.on_violation,
                structural=True,
                shows=(source,),
            )

    def _contract(self, batch: SourceBatch, reading: Reading, columns: dict[str, pa.Array]) -> Iterator[Breach]:
        for declared in self._view.schema:
            converted = self._converted(batch, declared.name, declared.dtype, reading)
            columns[declared.name] = converted.values
            faults, policy = converted.fault_mask, declared.on_violation or self._view.on_violation
            yield _dtype_breach(declared.name, declared.dtype, faults, policy)
            for rule in self._rules[declared.name]:
                yield Breach(
                    column=declared.name,
                    rule=rule.name,
                    says=rule.says,
                    rows=rule.breaches(converted.values) & ~faults,
                    on_violation=policy,
                    shows=(declared.name,),
                )

    def _converted(self, batch: SourceBatch, source: str, dtype: DType, reading: Reading) -> Converted:
        try:
            return convert(batch.column(source), source, dtype, reading)
        except SourceError as error:
            raise SourceError(f"feature view {self._view.ref}, {batch.source}: {error}") from error

    def _judged(self, rows: pa.Table, breaches: list[Breach], batch: SourceBatch, outside: int) -> Passed:
        if not breaches:
            return Passed(rows=rows, outside=outside)
        if rejecting := [breach for breach in breaches if breach.on_violation == "reject"]:
            first = rejecting[0]
            place = int(np.argmax(first.rows))
            example = f"{batch.source}, row {batch.row_numbers[place]}: {first.says}"
            raise ContractViolation(self._view.ref, count_by_rule(rejecting), example)
        refusing = [breach for breach in breaches if breach.refuses]
        broken, _ = first_breaches(breaches, rows.num_rows)
        bad, first_breach = first_breaches(refusing, rows.num_rows)
        return Passed(
            rows=rows.filter(pa.array(~bad)),
            refused=self._quarantine_rows(refusing, bad, first_breach, batch) if refusing else None,
            breaches=count_by_rule(breaches),
            outside=outside,
            warned=int(np.count_nonzero(broken & ~bad)),
        )

    def _quarantine_rows(
        self, breaches: Sequence[Breach], bad: Mask, first: NDArray[np.int64], batch: SourceBatch
    ) -> pa.Table:
        places = np.flatnonzero(bad)
        named = [breaches[index] for index in first[places]]
        judged = Judgements(
            places=places,
            rules=[breach.rule for breach in named],
            fields=[breach.column for breach in named],
            reasons=[breach.says for breach in named],
        )
        return set_aside(self._view, self._run, self._at_us, batch, judged)


def check_column(
    declared: Field, column: pa.Array, rules: Sequence[Rule] | None = None
) -> tuple[pa.Array, Mapping[str, Mask]]:
    """A request field's values, canonical, and the rows that break each of its rules (empty when all keep them).

    `rules` are its `field_rules`, where somebody keeps them ready.
    """
    converted = convert(column, declared.name, declared.dtype, Reading())
    faults = converted.faults
    broken = {}
    if faults is not None and faults.any():
        broken[f"{declared.name} has no exact {declared.dtype} value"] = faults
    for rule in field_rules(declared) if rules is None else rules:
        rows = rule.breaches(converted.values)
        if faults is not None:
            rows = rows & ~faults
        if rows.any():
            broken[rule.says] = rows
    return converted.values, broken


def _dtype_breach(column: str, dtype: DType, faults: Mask, on_violation: str) -> Breach:
    return Breach(
        column=column,
        rule=DTYPE_RULE,
        says=f"{column} has no exact {dtype} value",
        rows=faults,
        on_violation=on_violation,
        structural=True,
        shows=(column,),
    )
