"""Where each value lies in a packed row: pure arithmetic over the fields of a schema (docs/online-format.md).

A row is a prefix (order key, codec version, schema id), then the payload: null bitmap, fixed-width cells in field
order, variable section. Offsets here count from the start of the payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from featurestore.dtypes import Decimal, DType, List, Vector
from featurestore.field import Field

CODEC_VERSION = 1
ORDER_KEY_BYTES = 24
VERSION_AT = ORDER_KEY_BYTES
SCHEMA_ID_AT = VERSION_AT + 1
PREFIX_BYTES = SCHEMA_ID_AT + 4
#: Each slot of the variable section has its end, counted from the section's start, in the field's cell.
END_BYTES = 4

Kind = Literal["word", "wide", "slots"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One field's place in the fixed-width section.

    `word`: a value of 1, 4 or 8 bytes. `wide`: bytes copied as a whole (decimal, vector). `slots`: the end offsets of
    one slot of the variable section, or of two (list of strings or bytes: element lengths, then their bytes).
    """

    index: int
    dtype: DType
    kind: Kind
    offset: int
    width: int
    first_slot: int

    @property
    def slots(self) -> int:
        """How many slots of the variable section the field has."""
        return self.width // END_BYTES if self.kind == "slots" else 0


@dataclass(frozen=True, slots=True)
class WordRun:
    """Neighbouring `word` cells of one width, moved as one block."""

    offset: int
    width: int
    cells: tuple[Cell, ...]

    @property
    def end(self) -> int:
        """Where the run ends."""
        return self.offset + self.width * len(self.cells)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The layout of all rows of one schema."""

    cells: tuple[Cell, ...]
    bitmap_bytes: int
    #: Payload bytes without the variable section.
    fixed_bytes: int
    slot_count: int

    @property
    def slot_cells(self) -> list[Cell]:
        """The fields that have slots, in order."""
        return [cell for cell in self.cells if cell.kind == "slots"]


def row_layout(fields: Sequence[Field]) -> RowLayout:
    """The layout of rows with these fields, in this order."""
    bitmap_bytes = -(-len(fields) // 8)
    offset, slot, cells = bitmap_bytes, 0, []
    for index, field in enumerate(fields):
        kind, width = _cell_size(field.dtype)
        cells.append(Cell(index, field.dtype, kind, offset, width, slot))
        offset += width
        slot += cells[-1].slots
    return RowLayout(tuple(cells), bitmap_bytes, offset, slot)


def word_runs(cells: Iterable[Cell]) -> list[WordRun]:
    """The `word` cells among `cells`, in their order, in runs that lie next to each other."""
    runs: list[WordRun] = []
    for cell in cells:
        if cell.kind != "word":
            continue
        if runs and runs[-1].width == cell.width and runs[-1].end == cell.offset:
            runs[-1] = WordRun(runs[-1].offset, cell.width, (*runs[-1].cells, cell))
        else:
            runs.append(WordRun(cell.offset, cell.width, (cell,)))
    return runs


def _cell_size(dtype: DType) -> tuple[Kind, int]:
    match dtype:
        case Decimal() | Vector():
            return "wide", dtype.width
        case List(element) if value_width(element) is None:
            return "slots", 2 * END_BYTES
        case _:
            width = value_width(dtype)
            return ("slots", END_BYTES) if width is None else ("word", width)


def value_width(dtype: DType) -> int | None:
    """Bytes of one value, None where it varies."""
    return dtype.width  # type: ignore[attr-defined]  # every concrete type has it
