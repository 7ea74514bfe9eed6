"""Columns that come with a request: turned into Arrow, checked against the declared types, cast without loss.

All checks are per column. Every fault is an InputError that names the column and says what would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import DType, List, String, Vector
from featurestore.errors import InputError, SourceError, suggest
from featurestore.field import Field
from featurestore.ingest.canonical import Reading, convert
from featurestore.ingest.gate import check_column
from featurestore.ingest.rules import Rule


def arrow_columns(columns: Mapping[str, object], what: str) -> dict[str, pa.Array]:
    """Columns given as Arrow arrays, numpy arrays or Python sequences, as Arrow arrays of one chunk."""
    return {name: _arrow_array(values, f"{what} {name!r}") for name, values in columns.items()}


def text_columns(rows: Sequence[Mapping[str, str]], dtypes: Mapping[str, DType], what: str) -> dict[str, pa.Array]:
    """Columns from rows of text (`carrier=AA,origin=JFK` on a command line), read as the declared types."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        texts = pa.array([row.get(name) for row in rows], pa.string())
        dtype = dtypes.get(name, String)  # an unknown name is refused later, with the known ones
        try:
            columns[name] = texts.cast(arrow_type(dtype))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{what} {name!r} holds text that is not {dtype}: {error}") from error
    return columns


def key_columns(columns: Mapping[str, pa.Array], dtypes: Mapping[str, DType], owner: str) -> dict[str, pa.Array]:
    """Exactly the join keys of `dtypes`, in that order, canonical; `owner` asked for them."""
    check_names(columns, dtypes, "join key", owner)
    return {name: exact(columns[name], dtype, "join key", name) for name, dtype in dtypes.items()}


def request_columns(
    columns: Mapping[str, pa.Array], fields: Mapping[str, tuple[Field, Sequence[Rule]]], owner: str
) -> dict[str, pa.Array]:
    """Exactly the request fields, each with its rules, in declared order, canonical and within their contracts."""
    check_names(columns, fields, "request field", owner)
    return {
        name: contracted(columns[name], field, rules, f"request field {name!r}")
        for name, (field, rules) in fields.items()
    }


def check_names(given: Mapping[str, object], wanted: Mapping[str, object], what: str, owner: str) -> None:
    """InputError unless both have the same names."""
    if given.keys() == wanted.keys():
        return
    for name in given:
        if name not in wanted:
            known = suggest(name, sorted(wanted)) if wanted else ", nor any other"
            raise InputError(f"{owner} takes no {what} {name!r}{known}")
    missing = [name for name in wanted if name not in given]
    if missing:
        raise InputError(f"{owner} needs {what} {', '.join(map(repr, missing))}; it takes: {', '.join(wanted)}")


def exact(column: pa.Array, dtype: DType, kind: str, name: str) -> pa.Array:
    """`column` in the canonical Arrow type of `dtype`, by the casts that the gate allows: none changes a value.

    For errors: it is a `kind` (a "join key", say) called `name`.
    """
    if column.type == arrow_type(dtype) and not isinstance(dtype, (List, Vector)):
        return column
    what = f"{kind} {name!r}"
    try:
        converted = convert(column, what, dtype, Reading())
    except SourceError as error:
        raise InputError(f"{what} is {column.type}, it must be {dtype}; cast it before the call") from error
    if converted.faults is not None and converted.faults.any():
        raise InputError(f"{what} has no exact {dtype} value {_where(converted.faults)}; give values that fit")
    return converted.values


def contracted(column: pa.Array, field: Field, rules: Sequence[Rule], what: str) -> pa.Array:
    """A request field's column, canonical and within the field's contract: the check that training spines pass."""
    try:
        values, broken = check_column(field, column, rules)
    except SourceError as error:
        raise InputError(f"{what} is {column.type}, it must be {field.dtype}; cast it before the call") from error
    if broken:
        faults = ", ".join(f"{says} {_where(rows)}" for says, rows in broken.items())
        raise InputError(f"{what} breaks its contract: {faults}; correct the values, or leave these rows out")
    return values


def _where(rows: NDArray[np.bool_]) -> str:
    count = int(np.count_nonzero(rows))
    return f"in row {int(rows.argmax())}" + (f" and {count - 1} more" if count > 1 else "")


def common_length(columns: Mapping[str, pa.Array], what: str) -> int:
    """How many rows the columns have; InputError when they disagree."""
    lengths = set(map(len, columns.values()))
    if len(lengths) > 1:
        listed = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise InputError(f"{what} differ in length ({listed}); give one value per row in each")
    return lengths.pop() if lengths else 0


def _arrow_array(values: object, what: str) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{what} is one value; give a sequence with one value per row")
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, OverflowError) as error:
        raise InputError(f"{what} cannot be read as a column: {error}; give values of one type") from error
