"""Packed rows back to columns, in a number of Python calls that does not grow with the rows.

Absent rows are decoded as a row whose values are all null, so that one code path serves them; rows of several schemas
are decoded schema by schema and put back in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import Bool, DType, List, Vector
from featurestore.errors import StoreError
from featurestore.field import Field
from featurestore.online import packing
from featurestore.online.decoded_columns import (
    BlockLayout,
    BlockLine,
    DecodedColumns,
    WordBlock,
    packed_bits,
    value_buffer,
)
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_layout import (
    CODEC_VERSION,
    END_BYTES,
    PREFIX_BYTES,
    SCHEMA_ID_AT,
    VERSION_AT,
    Cell,
    RowLayout,
    row_layout,
    value_width,
    word_runs,
)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedRows:
    """Rows as columns, aligned with the rows asked for."""

    found: NDArray[np.bool_]
    """False where there was no row."""
    order: OrderKeys
    """Zeros where not found."""
    blank: NDArray[np.bool_]
    """Whether every wanted field is null; of no meaning where not found."""
    decoded: DecodedColumns
    """One column a wanted field; null where not found."""

    @property
    def columns(self) -> tuple[pa.Array, ...]:
        """The columns in canonical Arrow types."""
        return self.decoded.arrays


class RowDecoder:
    """Decodes rows of any known schema into the wanted fields.

    A field that the schema of a row does not have takes its default there, or null.
    """

    def __init__(self, schemas: Mapping[int, Sequence[Field]], wanted: Sequence[Field]) -> None:
        assert schemas, "a view that was applied has a schema"
        self._newest = max(schemas)
        self._wanted = tuple(wanted)
        self._by_schema = {
            schema_id: _SchemaDecoder(schema_id, tuple(fields), self._wanted) for schema_id, fields in schemas.items()
        }

    def decode(self, rows: pa.BinaryArray) -> DecodedRows:
        """The rows as columns. StoreError when bytes are cut short, foreign or of another codec version."""
        count = len(rows)
        if count == 0:
            return self._nothing()
        found = np.ones(count, dtype=np.bool_)
        if rows.null_count:
            found = ~packing.null_mask(rows)
            rows = rows.fill_null(self._stand_in(rows, found))
        packed = _Packed.of(rows)
        heads = packed.heads()
        if _all_alike(heads[:, VERSION_AT:PREFIX_BYTES]):
            columns, blank = self._decoder(heads[0]).decode(packed, found)
        else:
            columns, blank = self._decode_mixed(rows, heads, found)
        return DecodedRows(found, OrderKeys.read_from(heads), blank, columns)

    def _nothing(self) -> DecodedRows:
        none, nowhere = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        columns = DecodedColumns.of([pa.array([], arrow_type(field.dtype)) for field in self._wanted])
        return DecodedRows(nowhere, OrderKeys(none, none, none), nowhere, columns)

    def _stand_in(self, rows: pa.BinaryArray, found: NDArray[np.bool_]) -> pa.BinaryScalar:
        """A row of nulls to decode in place of absent rows, of the schema of the first present row."""
        first = rows[int(found.argmax())].as_py()
        if first is None or len(first) < PREFIX_BYTES:
            return self._by_schema[self._newest].null_row
        return self._decoder(np.frombuffer(first, dtype=np.uint8)).null_row

    def _decoder(self, head: NDArray[np.uint8]) -> _SchemaDecoder:
        """What decodes rows that begin like this one."""
        version = int(head[VERSION_AT])
        if version != CODEC_VERSION:
            raise StoreError(
                f"codec version {version} is unknown, this featurestore reads version {CODEC_VERSION}: the row was "
                f"written by a newer featurestore, or is no row of featurestore at all; {_WAY_OUT}"
            )
        schema_id = int.from_bytes(head[SCHEMA_ID_AT:PREFIX_BYTES].tobytes(), "little")
        decoder = self._by_schema.get(schema_id)
        if decoder is None:
            known = ", ".join(map(str, sorted(self._by_schema)))
            raise StoreError(
                f"an online row has schema {schema_id}, the registry knows {known}; if it was applied after this "
                f"process started, restart it; otherwise {_WAY_OUT}"
            )
        return decoder

    def _decode_mixed(
        self, rows: pa.BinaryArray, heads: NDArray[np.uint8], found: NDArray[np.bool_]
    ) -> tuple[DecodedColumns, NDArray[np.bool_]]:
        """Rows of several schemas, schema by schema, back in their order."""
        tags = heads[:, VERSION_AT:PREFIX_BYTES].astype(np.int64) @ (1 << np.arange(0, 40, 8))
        groups = [np.flatnonzero(tags == tag) for tag in np.unique(tags)]
        parts = [
            self._decoder(heads[group[0]]).decode(_Packed.of(rows.take(pa.array(group))), found[group])
            for group in groups
        ]
        places = np.argsort(np.concatenate(groups))
        arrays = zip(*(columns.arrays for columns, _ in parts), strict=True)
        columns = DecodedColumns.of([pa.concat_arrays(pieces).take(pa.array(places)) for pieces in arrays])
        return columns, np.concatenate([blank for _, blank in parts])[places]


_WAY_OUT = "publish the view again with --repair, or check which program writes to this store"


def _all_alike(lines: NDArray[np.uint8]) -> bool:
    """Whether all lines of a byte matrix are equal: one comparison of bytes is quicker than one by numpy."""
    first: bytes = lines[0].tobytes()
    return lines.tobytes() == first * len(lines)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Rows without nulls, and the same as a matrix when all have one length."""

    rows: pa.BinaryArray
    matrix: NDArray[np.uint8] | None

    @classmethod
    def of(cls, rows: pa.BinaryArray) -> _Packed:
        """The rows, looked at once."""
        return cls(rows, packing.to_matrix_view(rows))

    def heads(self) -> NDArray[np.uint8]:
        """At least the prefix of every row, as a matrix."""
        shortest = int(np.diff(packing.byte_offsets(self.rows)).min()) if self.matrix is None else self.matrix.shape[1]
        if shortest < PREFIX_BYTES:
            raise StoreError(f"an online row has {shortest} bytes, fewer than its prefix of {PREFIX_BYTES}; {_WAY_OUT}")
        return packing.first_bytes(self.rows, PREFIX_BYTES) if self.matrix is None else self.matrix


@dataclass(frozen=True, slots=True)
class _Output:
    """Which cell feeds which wanted fields."""

    cell: Cell
    type: pa.DataType
    positions: tuple[int, ...]


class _BlockReader:
    """All wanted `word` cells of one width, decoded together: one line a field."""

    def __init__(self, width: int, outputs: Sequence[_Output]) -> None:
        self._word = f"<u{width}"
        self._runs = []
        lines = 0
        for run in word_runs([output.cell for output in outputs]):
            self._runs.append((run.offset, run.end, lines, lines + len(run.cells)))
            lines += len(run.cells)
        self._fields = np.array([output.cell.index for output in outputs])
        self._layout = BlockLayout(tuple(BlockLine(output.type, output.positions) for output in outputs))

    def read(self, payload: NDArray[np.uint8], nulls: NDArray[np.bool_] | None) -> WordBlock:
        words = np.empty((len(self._layout.lines), len(payload)), dtype=self._word)
        for start, end, first, last in self._runs:
            words[first:last] = payload[:, start:end].view(self._word).T
        return WordBlock(self._layout, words, None if nulls is None else nulls[:, self._fields].T, 0, len(payload))


class _SchemaDecoder:
    """Decodes rows that all have one schema."""

    def __init__(self, schema_id: int, fields: Sequence[Field], wanted: Sequence[Field]) -> None:
        self._schema_id = schema_id
        self._layout = row_layout(fields)
        self._wanted_count = len(wanted)
        cells = {field.name: cell for field, cell in zip(fields, self._layout.cells, strict=True)}
        self._absent = [
            (position, pa.scalar(field.default, arrow_type(field.dtype)))
            for position, field in enumerate(wanted)
            if field.name not in cells
        ]
        outputs = _outputs(cells, wanted)
        words = [output for output in outputs if output.cell.kind == "word"]
        widths = sorted({output.cell.width for output in words})
        readers = {width: _BlockReader(width, [o for o in words if o.cell.width == width]) for width in widths}
        # Booleans take a byte here and a bit elsewhere, so they leave as arrays.
        self._bools = readers.pop(value_width(Bool) or 0, None)
        self._blocks = list(readers.values())
        self._wide = [output for output in outputs if output.cell.kind == "wide"]
        self._slotted = [output for output in outputs if output.cell.kind == "slots"]
        self._end_offsets = [
            cell.offset + END_BYTES * number for cell in self._layout.slot_cells for number in range(cell.slots)
        ]
        self._fields = np.array([output.cell.index for output in outputs], dtype=np.intp)
        self._never_blank = any(default.is_valid for _, default in self._absent)
        self.null_row = _null_row(schema_id, self._layout)

    def decode(self, packed: _Packed, found: NDArray[np.bool_]) -> tuple[DecodedColumns, NDArray[np.bool_]]:
        """The columns, and which rows have no value in any of them."""
        payload, slots = self._sections(packed)
        bitmap = payload[:, : self._layout.bitmap_bytes]
        nulls = np.unpackbits(bitmap, axis=1, bitorder="little").view(np.bool_) if np.count_nonzero(bitmap) else None
        others: dict[int, pa.Array] = {}
        for output in self._wide:
            _put(others, output, _wide_column(payload, output, _validity(nulls, output.cell)))
        for output in self._slotted:
            first = output.cell.first_slot
            values = slots[first : first + output.cell.slots]
            _put(others, output, _slot_column(values, output, _validity(nulls, output.cell)))
        for position, default in self._absent:
            others[position] = _default_column(default, found)
        if self._bools is not None:
            others |= self._bools.read(payload, nulls).arrays()
        blocks = [block.read(payload, nulls) for block in self._blocks]
        return DecodedColumns(self._wanted_count, blocks, others), self._blank(nulls, len(payload))

    def _blank(self, nulls: NDArray[np.bool_] | None, count: int) -> NDArray[np.bool_]:
        if self._never_blank or (nulls is None and len(self._fields)):
            return np.zeros(count, dtype=np.bool_)
        return np.ones(count, dtype=np.bool_) if nulls is None else np.all(nulls[:, self._fields], axis=1)

    def _sections(self, packed: _Packed) -> tuple[NDArray[np.uint8], list[pa.BinaryArray]]:
        """The fixed part of every payload as a matrix, and the slots of the variable section."""
        fixed_end = PREFIX_BYTES + self._layout.fixed_bytes
        if packed.matrix is not None and packed.matrix.shape[1] == fixed_end and not self._end_offsets:
            return packed.matrix[:, PREFIX_BYTES:], []
        offsets = packing.byte_offsets(packed.rows).astype(np.int64)
        lengths = np.diff(offsets)
        wrong = lengths < fixed_end if self._end_offsets else lengths != fixed_end
        if bool(wrong.any()):
            raise self._wrong_length(int(lengths[wrong][0]), fixed_end)
        payload = packing.first_bytes(packed.rows, fixed_end)[:, PREFIX_BYTES:]
        return payload, self._slots(packed.rows, payload, offsets)

    def _slots(
        self, rows: pa.BinaryArray, payload: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> list[pa.BinaryArray]:
        """Each slot as an array: the rows are read as segments (fixed part, slot, slot, ...), without a copy, then
        every slot's segments are taken."""
        count, segments = len(payload), len(self._end_offsets) + 1
        bounds = np.empty((count, segments + 1), dtype=np.int64)
        bounds[:, 0] = 0
        bounds[:, 1] = PREFIX_BYTES + self._layout.fixed_bytes
        for number, offset in enumerate(self._end_offsets):
            bounds[:, number + 2] = bounds[:, 1] + payload[:, offset : offset + END_BYTES].view("<u4")[:, 0]
        lengths = np.diff(offsets)
        if bool((bounds[:, -1] != lengths).any()) or bool((np.diff(bounds, axis=1) < 0).any()):
            bad = int(np.argmax((bounds[:, -1] != lengths) | (np.diff(bounds, axis=1) < 0).any(axis=1)))
            raise self._wrong_length(int(lengths[bad]), int(bounds[bad].max()))
        starts = (offsets[:-1, None] + bounds[:, :-1]).ravel()
        pieces = packing.from_offsets(np.append(starts, offsets[-1]).astype(np.int32), rows.buffers()[2])
        lines = np.arange(count) * segments
        return [pieces.take(pa.array(lines + number)) for number in range(1, segments)]

    def _wrong_length(self, length: int, expected: int) -> StoreError:
        return StoreError(
            f"an online row of schema {self._schema_id} has {length} bytes where its fields say {expected}: "
            f"it was cut short or changed; {_WAY_OUT}"
        )


def _null_row(schema_id: int, layout: RowLayout) -> pa.BinaryScalar:
    """A row of a schema with order key 0 and every value null."""
    order_key = (b"\x80" + bytes(7)) * 3
    prefix = order_key + bytes([CODEC_VERSION]) + schema_id.to_bytes(4, "little")
    bitmap = b"\xff" * layout.bitmap_bytes
    return pa.scalar(prefix + bitmap + bytes(layout.fixed_bytes - len(bitmap)), pa.binary())


def _outputs(cells: Mapping[str, Cell], wanted: Sequence[Field]) -> list[_Output]:
    """The wanted cells by offset, so that neighbours are moved together."""
    positions: dict[str, list[int]] = {}
    for position, field in enumerate(wanted):
        if field.name in cells:
            assert cells[field.name].dtype == field.dtype, f"{field.name} changed its type inside a view version"
            positions.setdefault(field.name, []).append(position)
    chosen = [_Output(cells[name], arrow_type(cells[name].dtype), tuple(at)) for name, at in positions.items()]
    return sorted(chosen, key=lambda output: output.cell.offset)


def _put(columns: dict[int, pa.Array], output: _Output, column: pa.Array) -> None:
    for position in output.positions:
        columns[position] = column


def _validity(nulls: NDArray[np.bool_] | None, cell: Cell) -> pa.Buffer | None:
    return None if nulls is None else packed_bits(~nulls[:, cell.index])


def _element_array(element: DType, data: NDArray[np.uint8]) -> pa.Array:
    """Values of fixed width from their bytes."""
    kind, width = arrow_type(element), value_width(element)
    assert width is not None
    return pa.Array.from_buffers(kind, len(data) // width, [None, value_buffer(data, kind)])


def _wide_column(payload: NDArray[np.uint8], output: _Output, validity: pa.Buffer | None) -> pa.Array:
    cell = output.cell
    data = np.ascontiguousarray(payload[:, cell.offset : cell.offset + cell.width]).reshape(-1)
    if isinstance(cell.dtype, Vector):
        elements = _element_array(cell.dtype.element, data)
        return pa.Array.from_buffers(output.type, len(payload), [validity], children=[elements])
    return pa.Array.from_buffers(output.type, len(payload), [validity, pa.py_buffer(data)])


def _slot_column(slots: Sequence[pa.BinaryArray], output: _Output, validity: pa.Buffer | None) -> pa.Array:
    dtype, first = output.cell.dtype, slots[0]
    if not isinstance(dtype, List):
        return pa.Array.from_buffers(output.type, len(first), [validity, *first.buffers()[1:]])
    ends = packing.byte_offsets(first)
    width = value_width(dtype.element)
    offsets, broken = np.divmod(ends, np.int32(width or END_BYTES))
    if bool(broken.any()):
        raise StoreError(f"a list in an online row ends in the middle of an element; {_WAY_OUT}")
    if width is None:
        elements = _text_elements(ends, slots, dtype.element)
    else:
        elements = _element_array(dtype.element, packing.data_bytes(first)[: ends[-1]])
    return pa.Array.from_buffers(output.type, len(first), [validity, pa.py_buffer(offsets)], children=[elements])


def _text_elements(ends: NDArray[np.int32], slots: Sequence[pa.BinaryArray], element: DType) -> pa.Array:
    """The elements of all lists of strings or bytes: their lengths in one slot, their bytes in the next."""
    lengths, texts = slots
    sizes = packing.data_bytes(lengths)[: ends[-1]].view("<u4")
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if bool((offsets[ends // END_BYTES] != packing.byte_offsets(texts)).any()):
        raise StoreError(f"a list in an online row says other element lengths than it has bytes; {_WAY_OUT}")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), texts.buffers()[2]]
    return pa.Array.from_buffers(arrow_type(element), len(sizes), buffers)


def _default_column(default: pa.Scalar, found: NDArray[np.bool_]) -> pa.Array:
    column = pa.repeat(default, len(found))
    return column if bool(found.all()) else pc.if_else(pa.array(found), column, pa.scalar(None, column.type))
