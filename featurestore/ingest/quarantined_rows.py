"""Quarantined rows as people and programs get them: with the source's own columns and types, or as JSON documents."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pyarrow as pa

from featurestore.clock import iso_text
from featurestore.compiler.names import ROW
from featurestore.errors import InputError
from featurestore.ingest.raw_rows import json_values, rows_of

#: Before the names of what quarantine says of a row, beside the source's own columns.
PREFIX = "quarantine_"


def as_source_rows(kept: pa.Table) -> pa.Table:
    """The rows as their source had them, behind `quarantine_...` columns that say why they are here.

    A column that has several types, since its rows came from files of several kinds, is JSON text. Rows of which
    nothing was kept have nulls. InputError when a column of the source has one of our names.
    """
    parts = _read_back(kept)
    types: dict[str, set[pa.DataType]] = defaultdict(set)
    for part in parts:
        for field in part.schema:
            types[field.name].add(field.type)
    mixed = {name for name, found in types.items() if len(found) > 1}
    rows = pa.concat_tables([_as_texts(part, mixed) for part in parts], promote_options="default")
    rows = rows.sort_by(ROW).drop_columns([ROW])
    ours = kept.drop_columns(["raw", "raw_form"])
    ours = ours.rename_columns([PREFIX + name.removeprefix("quarantined_") for name in ours.column_names])
    if clashing := sorted(set(ours.column_names) & set(rows.column_names)):
        raise InputError(
            f"the source has columns named {', '.join(clashing)}, as quarantine calls its own; rename them there"
        )
    return pa.table([*ours.columns, *rows.columns], names=[*ours.column_names, *rows.column_names])


def _read_back(kept: pa.Table) -> list[pa.Table]:
    """The rows of each form, with their places in `_row`."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, form in enumerate(kept.column("raw_form").to_pylist()):
        places[form].append(place)
    parts = [pa.table({ROW: pa.array([], pa.int64())})]
    for form, found in places.items():
        chosen = pa.array(found, pa.int64())
        raws = kept.column("raw").take(chosen).to_pylist()
        rows = rows_of(raws, form)[0].append_column(ROW, chosen) if form else pa.table({ROW: chosen})
        parts.append(rows)
    return parts


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
