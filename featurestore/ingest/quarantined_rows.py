"""Quarantined rows as people and programs get them: with the source's own columns and types, or as JSON documents."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.clock import iso_text
from featurestore.compiler.names import ROW
from featurestore.errors import InputError, StoreBusy
from featurestore.ingest.raw_rows import json_values, rows_of
from featurestore.offline.quarantine import QUARANTINE_SCHEMA, Chosen, Quarantine, pages

#: Before the names of what quarantine says of a row, beside the source's own columns.
PREFIX = "quarantine_"
#: Rows that are held at once, and their bytes: each page is found anew, so small ones take long.
PAGE_ROWS, PAGE_BYTES = 100_000, 32 << 20

#: The columns of quarantine that are shown beside those of the source -> their names there.
_OURS = {
    name: PREFIX + name.removeprefix("quarantined_")
    for name in QUARANTINE_SCHEMA.names
    if name not in ("raw", "raw_form")
}


class SourceRows:
    """Rows of one view as their source had them, behind `quarantine_...` columns that say why they are here.

    A column that has several types, since its rows came from files of several kinds, is JSON text. Rows of which
    nothing was kept have nulls. InputError when a column of the source has one of our names.
    """

    def __init__(self, quarantine: Quarantine, chosen: Chosen) -> None:
        self._quarantine, self._chosen = quarantine, chosen
        self._forms = frozenset(forms := quarantine.forms(chosen))
        types: dict[str, set[pa.DataType]] = defaultdict(set)
        for form in filter(None, forms):
            for field in rows_of([], form)[0].schema:
                types[field.name].add(field.type)
        self._mixed = {name for name, found in types.items() if len(found) > 1}
        fields = [(name, pa.string() if name in self._mixed else next(iter(found))) for name, found in types.items()]
        self._theirs = pa.schema([*fields, (ROW, pa.int64())])
        ours = [QUARANTINE_SCHEMA.field(name).with_name(shown) for name, shown in _OURS.items()]
        if clashing := sorted(types.keys() & set(_OURS.values())):
            raise InputError(
                f"the source has columns named {', '.join(clashing)}, as quarantine calls its own; rename them there"
            )
        #: Of all the tables.
        self.schema = pa.schema([*ours, *(pa.field(name, kind) for name, kind in fields)])

    def tables(self, rows_max: int = PAGE_ROWS) -> Iterator[pa.Table]:
        """The rows in the order of their arrival, so many at a time; StoreBusy when some of another form come in."""
        for kept in pages(self._quarantine, self._chosen, rows_max, PAGE_BYTES):
            if not self._forms.issuperset(kept.column("raw_form").unique().to_pylist()):
                raise StoreBusy("rows of another form were set aside meanwhile; run this again")
            yield self._as_source(kept)

    def _as_source(self, kept: pa.Table) -> pa.Table:
        parts = [_as_texts(part, self._mixed) for part in _read_back(kept)]
        rows = pa.concat_tables([self._theirs.empty_table(), *parts], promote_options="default")
        theirs = rows.sort_by(ROW).drop_columns([ROW])
        return pa.table([*(kept.column(name) for name in _OURS), *theirs.columns], self.schema)


def _read_back(kept: pa.Table) -> Iterator[pa.Table]:
    """The rows of each form, with their places in `_row`."""
    placed = pa.table({"form": kept.column("raw_form"), ROW: np.arange(len(kept))})
    forms, places = placed.group_by("form", use_threads=False).aggregate([(ROW, "list")]).combine_chunks().columns
    for form, found in zip(forms.to_pylist(), places, strict=True):
        chosen = found.values
        raws = kept.column("raw").take(chosen).to_pylist()
        yield rows_of(raws, form)[0].append_column(ROW, chosen) if form else pa.table({ROW: chosen})


def _as_texts(rows: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(rows.column_names):
        values = json_values(rows.column(name).combine_chunks())
        texts = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
        rows = rows.set_column(rows.column_names.index(name), name, texts)
    return rows


def documents(kept: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON documents; `raw` is what the source said and `types` in which types, None of both if unknown."""
    times_us = kept.column("quarantined_at").cast(pa.int64()).to_pylist()
    plain = kept.drop_columns(["raw", "raw_form", "quarantined_at"]).to_pylist()
    raws, forms = kept.column("raw").to_pylist(), kept.column("raw_form").to_pylist()
    return [
        row
        | {
            "quarantined_at": iso_text(time_us),
            "raw": json.loads(raw) if raw else None,
            "types": json.loads(form)["types"] if form else None,
        }
        for row, time_us, raw, form in zip(plain, times_us, raws, forms, strict=True)
    ]
