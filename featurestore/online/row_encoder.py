"""Columns to packed rows (docs/online-format.md). Checks no contract: the gate has made the values canonical."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import Bool, DType, List, Vector
from featurestore.field import Field
from featurestore.online import packing
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_layout import (
    CODEC_VERSION,
    PREFIX_BYTES,
    SCHEMA_ID_AT,
    VERSION_AT,
    Cell,
    WordRun,
    row_layout,
    value_width,
    word_runs,
)

_EMPTY = pa.scalar(b"", pa.binary())


class RowEncoder:
    """Packs rows of one schema. Equal values (nulls, NaN and -0.0 as bits) give equal payload bytes, and only they."""

    def __init__(self, schema_id: int, fields: Sequence[Field]) -> None:
        self._schema_id = schema_id
        self._types = tuple(arrow_type(field.dtype) for field in fields)
        self._layout = row_layout(fields)
        self._runs = word_runs(self._layout.cells)

    @property
    def fixed_row_bytes(self) -> int:
        """Bytes of a row without its variable section: a batch of rows has at most 2 GiB."""
        return PREFIX_BYTES + self._layout.fixed_bytes

    def encode(self, order: OrderKeys, columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.BinaryArray:
        """One packed row for each line of `columns`: one column a field, in schema order, in canonical Arrow types."""
        matrix = self._matrix(PREFIX_BYTES, len(order))
        order.write_to(matrix)
        matrix[:, VERSION_AT] = CODEC_VERSION
        matrix[:, SCHEMA_ID_AT:PREFIX_BYTES].view("<u4")[...] = self._schema_id
        return self._packed(matrix, PREFIX_BYTES, columns)

    def payload(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.BinaryArray:
        """The canonical value bytes of each line: the row without order key, version and schema id."""
        return self._packed(self._matrix(0, len(columns[0])), 0, columns)

    def _matrix(self, prefix: int, count: int) -> NDArray[np.uint8]:
        width = prefix + self._layout.fixed_bytes
        packing.check_batch_bytes(count * width)
        return np.zeros((count, width), dtype=np.uint8)

    def _packed(
        self, matrix: NDArray[np.uint8], prefix: int, columns: Sequence[pa.Array | pa.ChunkedArray]
    ) -> pa.BinaryArray:
        arrays = [packing.as_array(column) for column in columns]
        self._assert_fits(arrays, len(matrix))
        if len(matrix) == 0:
            return pa.array([], pa.binary())
        payload = matrix[:, prefix:]
        self._write_bitmap(payload, arrays)
        for run in self._runs:
            _write_run(payload, run, arrays)
        for cell in self._layout.cells:
            if cell.kind == "wide":
                payload[:, cell.offset : cell.offset + cell.width] = _wide_values(arrays[cell.index], cell)
        return packing.join([packing.from_matrix(matrix), *self._write_slots(payload, arrays)])

    def _assert_fits(self, arrays: Sequence[pa.Array], count: int) -> None:
        assert len(arrays) == len(self._types), f"{len(arrays)} columns for {len(self._types)} fields"
        for index, (array, expected) in enumerate(zip(arrays, self._types, strict=True)):
            assert array.type == expected, f"column {index}: {array.type} is not {expected}"
            assert len(array) == count, f"column {index}: {len(array)} values for {count} rows"

    def _write_bitmap(self, payload: NDArray[np.uint8], arrays: Sequence[pa.Array]) -> None:
        with_nulls = [index for index, array in enumerate(arrays) if array.null_count]
        if with_nulls:
            nulls = np.zeros((len(payload), 8 * self._layout.bitmap_bytes), dtype=np.bool_)
            for index in with_nulls:
                nulls[:, index] = packing.null_mask(arrays[index])
            payload[:, : self._layout.bitmap_bytes] = np.packbits(nulls, axis=1, bitorder="little")

    def _write_slots(self, payload: NDArray[np.uint8], arrays: Sequence[pa.Array]) -> list[pa.BinaryArray]:
        """The slots of the variable section, in order; their ends go into the cells."""
        slots: list[pa.BinaryArray] = []
        end = np.zeros(len(payload), dtype=np.int64)
        for cell in self._layout.slot_cells:
            for number, slot in enumerate(_slot_values(arrays[cell.index], cell.dtype)):
                end = end + np.diff(packing.byte_offsets(slot))
                at = cell.offset + 4 * number
                payload[:, at : at + 4].view("<u4")[:, 0] = end
                slots.append(slot)
        return slots


def _write_run(payload: NDArray[np.uint8], run: WordRun, arrays: Sequence[pa.Array]) -> None:
    # Lines a power of two apart would all lie at the same few places of the cache.
    lines = np.empty((len(run.cells), len(payload) + 16), dtype=f"<u{run.width}")
    words = lines[:, : len(payload)]
    for line, cell in zip(words, run.cells, strict=True):
        line[...] = _word_values(arrays[cell.index], run.width)
    # numpy walks the target line by line, so every line of the payload is touched once.
    payload[:, run.offset : run.end].view(f"<u{run.width}")[...] = words.T


def _word_values(column: pa.Array, width: int) -> NDArray[np.unsignedinteger]:
    """The bits of a fixed-width column as unsigned words, zero where null."""
    words = _column_words(column, width)
    if column.null_count:
        words = np.where(packing.null_mask(column), words.dtype.type(0), words)
    return words


def _column_words(column: pa.Array, width: int) -> NDArray[np.unsignedinteger]:
    """The bits of a fixed-width column as they lie in memory; anything where null."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())  # Arrow packs booleans eight to a byte
    words = packing.buffer_bytes(column.buffers()[1]).view(f"<u{width}")
    return words[column.offset : column.offset + len(column)]


def _wide_values(column: pa.Array, cell: Cell) -> NDArray[np.uint8]:
    """The bytes of a decimal or vector column, one line a row, zero where null."""
    if isinstance(cell.dtype, Vector):
        length = cell.dtype.length
        elements = column.values.slice(column.offset * length, len(column) * length)
        width = value_width(cell.dtype.element)
        assert width is not None
        lines = _column_words(elements, width).view(np.uint8).reshape(len(column), cell.width)
    else:
        data = packing.buffer_bytes(column.buffers()[1])
        lines = data.reshape(-1, cell.width)[column.offset : column.offset + len(column)]
    if column.null_count:
        lines = np.where(packing.null_mask(column)[:, None], np.uint8(0), lines)
    return lines


def _slot_values(column: pa.Array, dtype: DType) -> list[pa.BinaryArray]:
    """What a variable-width column puts into each of its slots; nothing where null."""
    if not isinstance(dtype, List):
        return [column.view(pa.binary()).fill_null(_EMPTY)]
    offsets, elements = column.offsets.to_numpy(), column.values
    assert elements.null_count == 0, "a list element is null"
    width = value_width(dtype.element)
    if width is not None:
        slots = [_list_slot(offsets, width, _element_bytes(elements, dtype.element, width))]
    else:
        ends = packing.byte_offsets(elements.view(pa.binary()))
        lengths = np.diff(ends).astype("<u4").view(np.uint8)
        slots = [_list_slot(offsets, 4, lengths), packing.from_offsets(ends[offsets], packing.data_bytes(elements))]
    if column.null_count:
        slots = [pc.if_else(column.is_valid(), slot, _EMPTY) for slot in slots]
    return slots


def _list_slot(offsets: NDArray[np.int32], width: int, data: NDArray[np.uint8]) -> pa.BinaryArray:
    packing.check_batch_bytes(len(data))
    return packing.from_offsets(offsets * np.int32(width), data)


def _element_bytes(elements: pa.Array, element: DType, width: int) -> NDArray[np.uint8]:
    if element == Bool or width <= 8:
        return _column_words(elements, width).view(np.uint8)
    data = packing.buffer_bytes(elements.buffers()[1])
    return data[elements.offset * width : (elements.offset + len(elements)) * width]
