"""The matrix: columns as float32, by one pure function for training and serving, so that both are bit-equal.

Columns stand in the service's order, fixed vectors expanded. bool is 0 or 1; integers and float64 become the nearest
float32 (ties to even, rounded once); a string with allowed values becomes its ordinal there. What is null by then
(null itself, NOT_FOUND, EXPIRED) becomes the column's fill. Other types have no place and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import Bool, DType, Float32, Float64, String, Vector
from featurestore.errors import InputError
from featurestore.field import Field
from featurestore.registry.matrix_notes import has_cast, loses_digits


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixColumn:
    """An output and the columns of the matrix that it takes: `start` and the `width - 1` after it."""

    name: str
    field: Field
    fill: np.float32
    """Stands where the value is null: the declared fill, rounded once to the nearest float32."""
    start: int

    @cached_property
    def vector(self) -> bool:
        """Whether it is expanded."""
        return isinstance(self.field.dtype, Vector)

    @cached_property
    def width(self) -> int:
        """How many columns of the matrix: 1, or the length of a vector."""
        return self.field.dtype.length if isinstance(self.field.dtype, Vector) else 1

    @cached_property
    def element(self) -> DType:
        """The type of the single values."""
        return self.field.dtype.element if isinstance(self.field.dtype, Vector) else self.field.dtype

    @cached_property
    def plain(self) -> bool:
        """Whether its bytes are those of the matrix."""
        return self.field.dtype == Float32

    @cached_property
    def type(self) -> pa.DataType:
        """The Arrow type of the output."""
        return arrow_type(self.field.dtype)

    @property
    def names(self) -> list[str]:
        """The names of its columns: its own, or `name[0]`, `name[1]`, ... for a vector."""
        return [f"{self.name}[{index}]" for index in range(self.width)] if self.vector else [self.name]

    @cached_property
    def ordinals(self) -> pa.Array:
        """The allowed values of a string: the place of each is its number in the matrix."""
        return pa.array(self.field.allowed_values or (), pa.string())


@dataclass(frozen=True, eq=False)
class MatrixPlan:
    """Which output fills which columns of the matrix; made once a service, used for every batch."""

    columns: tuple[MatrixColumn, ...]

    @classmethod
    def compile(cls, outputs: Iterable[tuple[str, Field, float | None]]) -> MatrixPlan:
        """The plan of outputs as (name, field, fill), in order; a fill of None is NaN.

        InputError naming every output that has no cast, and every fill that float32 cannot hold.
        """
        columns: list[MatrixColumn] = []
        refused: list[str] = []
        start = 0
        for name, field, fill in outputs:
            filled = _nearest(math.nan if fill is None else fill)
            column = MatrixColumn(name=name, field=field, fill=filled, start=start)
            if not has_cast(field):
                refused.append(f"{name} ({field.dtype})")
            elif fill is not None and math.isfinite(fill) and not np.isfinite(filled):
                refused.append(f"{name} (its fill {fill!r} is beyond float32)")
            columns.append(column)
            start += column.width
        if refused:
            raise InputError(
                f"the matrix has no place for {', '.join(refused)}; leave them out of the service, "
                "declare allowed_values on strings, or take the answer as columns"
            )
        return cls(tuple(columns))

    @cached_property
    def width(self) -> int:
        """How many columns the matrix has."""
        return sum(column.width for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every column of the matrix, in order."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def lossy(self) -> tuple[str, ...]:
        """The outputs whose cast can lose digits: float64, and integers not bounded to 24 bits."""
        return tuple(column.name for column in self.columns if loses_digits(column.field))

    @cached_property
    def runs(self) -> tuple[tuple[int, tuple[MatrixColumn, ...]], ...]:
        """The columns in order, as (number of the first, columns): each vector alone, of single ones that follow each
        other those together that are float32, and those that are not."""
        places = enumerate(self.columns)
        grouped = groupby(places, key=lambda place: place[0] if place[1].vector else -1 - place[1].plain)
        runs = [list(group) for _, group in grouped]
        return tuple((run[0][0], tuple(column for _, column in run)) for run in runs)


def to_matrix(plan: MatrixPlan, columns: Sequence[pa.Array | pa.ChunkedArray | memoryview]) -> NDArray[np.float32]:
    """The matrix, row-major: `columns` are the plan's outputs in order, in canonical Arrow types, null where missing.

    A column without nulls whose values have one width may be its little-endian bytes. A row's bits depend on that row
    alone, so chunks may be cut anywhere. InputError naming output and row when a finite float64 is beyond float32, or a
    string is not among the allowed values.
    """
    assert len(columns) == len(plan.columns), f"{len(columns)} columns for a plan of {len(plan.columns)}"
    count = _row_count(plan, columns)
    matrix = np.empty((count, plan.width), dtype=np.float32)
    for first, run in plan.runs:
        # numpy copies line by line of the target, which is far quicker than column by column.
        matrix[:, run[0].start : run[-1].start + run[-1].width] = _block(run, columns[first : first + len(run)], count)
    return matrix


def _row_count(plan: MatrixPlan, columns: Sequence[pa.Array | pa.ChunkedArray | memoryview]) -> int:
    if not columns:
        return 0
    first = columns[0]
    return 8 * len(first) // plan.columns[0].type.bit_width if isinstance(first, memoryview) else len(first)


def _block(
    run: Sequence[MatrixColumn], columns: Sequence[pa.Array | pa.ChunkedArray | memoryview], count: int
) -> NDArray[np.float32]:
    """The columns of a run, as rows x width."""
    if all(isinstance(column, memoryview) for column in columns) and run[0].plain:
        return np.frombuffer(b"".join(columns), np.float32).reshape(len(run), count).T
    values = [_values(place, _array(place, column, count)) for place, column in zip(run, columns, strict=True)]
    return values[0] if run[0].vector else np.stack(values).T


def _array(place: MatrixColumn, column: pa.Array | pa.ChunkedArray | memoryview, count: int) -> pa.Array:
    if isinstance(column, memoryview):
        return pa.Array.from_buffers(place.type, count, [None, pa.py_buffer(column)])
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _values(column: MatrixColumn, array: pa.Array) -> NDArray[np.float32]:
    """The values of one output as float32, with a second dimension for a vector, the fill where null."""
    assert array.type == column.type, f"{column.name}: {array.type} is not {column.type}"
    if not column.vector:
        values = _cast(column, array, array)
        return np.where(_null_mask(array), column.fill, values) if array.null_count else values
    elements = array.values.slice(array.offset * column.width, len(array) * column.width)
    vectors = _cast(column, elements, array).reshape(len(array), column.width)
    return np.where(_null_mask(array)[:, None], column.fill, vectors) if array.null_count else vectors


def _cast(column: MatrixColumn, values: pa.Array, rows: pa.Array) -> NDArray[np.float32]:
    """Single values as float32; anything where `rows` is null."""
    if column.element == String:
        return _ordinals(column, values)
    if column.element == Bool:
        values = values.cast(pa.uint8())
    numbers = (values.fill_null(0) if values.null_count else values).to_numpy()
    if column.element != Float64:
        # An integer is rounded once, to nearest even: the hardware converts it without a stop at float64.
        return numbers.astype(np.float32)
    with np.errstate(over="ignore"):
        cast: NDArray[np.float32] = numbers.astype(np.float32)
    overflowed = np.isinf(cast) & np.isfinite(numbers)
    if bool(overflowed.any()):
        _refuse_overflow(column, numbers, overflowed & ~np.repeat(_null_mask(rows), column.width))
    return cast


def _ordinals(column: MatrixColumn, texts: pa.Array) -> NDArray[np.float32]:
    places = pc.index_in(texts, value_set=column.ordinals)
    if places.null_count > texts.null_count:
        row = int(np.flatnonzero(_null_mask(places) & ~_null_mask(texts))[0])
        raise InputError(
            f"{column.name}: {texts[row].as_py()!r} in row {row} is not among its allowed values; "
            "add it to them, or mend the source"
        )
    return places.fill_null(0).to_numpy().astype(np.float32)


def _refuse_overflow(column: MatrixColumn, numbers: NDArray[np.float64], overflowed: NDArray[np.bool_]) -> None:
    for place in np.flatnonzero(overflowed)[:1]:
        row, index = divmod(int(place), column.width)
        raise InputError(
            f"{column.names[index]}: {numbers[place]!r} in row {row} is beyond float32; bound the field, "
            "or leave it out of the matrix"
        )


def _null_mask(array: pa.Array) -> NDArray[np.bool_]:
    return array.is_null().to_numpy(zero_copy_only=False)


def _nearest(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(value)
