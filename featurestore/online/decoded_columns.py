"""Columns as they come out of packed rows: numbers of one width in a block, a line a field, the rest as Arrow arrays.

Who sends columns on copies the lines as they lie; everybody else asks for Arrow arrays, which are made then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Words(NamedTuple):
    """A column of values of one width: little-endian bytes, and a validity bitmap, empty where no value is null."""

    values: memoryview
    validity: bytes


@dataclass(frozen=True, slots=True)
class BlockLine:
    """What a line of a block holds, and the wanted columns that it is."""

    type: pa.DataType
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WordBlock:
    """Values of one width: `words` is lines x rows, C-contiguous; `nulls` likewise, None where no value is null.

    Booleans take a byte here.
    """

    lines: Sequence[BlockLine]
    words: NDArray[np.unsignedinteger]
    nulls: NDArray[np.bool_] | None

    def columns(self) -> Iterator[tuple[int, Words]]:
        """(position, column) of every line but booleans, whose bits lie elsewhere."""
        size = self.words.shape[1] * self.words.itemsize
        flat = self.words.data.cast("B")
        validity = self._validity()
        for number, line in enumerate(self.lines):
            if line.type != _BOOL:
                column = Words(flat[number * size : (number + 1) * size], validity[number] if validity else b"")
                for position in line.positions:
                    yield position, column

    def arrays(self) -> Iterator[tuple[int, pa.Array]]:
        """(position, array) of every line: the block is read as each of its types, and cut."""
        count = self.words.shape[1]
        validity = None if self.nulls is None else packed_bits(~self.nulls)
        blocks = {
            kind: pa.Array.from_buffers(kind, self.words.size, [validity, value_buffer(self.words, kind)])
            for kind in dict.fromkeys(line.type for line in self.lines)
        }
        for number, line in enumerate(self.lines):
            array = blocks[line.type].slice(number * count, count)
            for position in line.positions:
                yield position, array

    def _validity(self) -> list[bytes] | None:
        """The bitmap of each line, empty where no value of it is null."""
        if self.nulls is None:
            return None
        bits, some = np.packbits(~self.nulls, axis=1, bitorder="little"), np.any(self.nulls, axis=1)
        return [line.tobytes() if null else b"" for line, null in zip(bits, some, strict=True)]


@dataclass(frozen=True, eq=False)
class DecodedColumns:
    """The wanted columns, in order: blocks, and arrays by position."""

    count: int
    blocks: Sequence[WordBlock]
    others: Mapping[int, pa.Array]

    @classmethod
    def of(cls, arrays: Sequence[pa.Array]) -> DecodedColumns:
        """Columns that are Arrow arrays already."""
        return cls(len(arrays), (), dict(enumerate(arrays)))

    @cached_property
    def arrays(self) -> tuple[pa.Array, ...]:
        """All columns as Arrow arrays."""
        columns: list[pa.Array] = [None] * self.count
        for block in self.blocks:
            for position, array in block.arrays():
                columns[position] = array
        for position, array in self.others.items():
            columns[position] = array
        return tuple(columns)

    def as_they_lie(self) -> list[Words | pa.Array]:
        """Each column in the form that costs least."""
        columns: list[Words | pa.Array] = [None] * self.count
        for block in self.blocks:
            for position, column in block.columns():
                columns[position] = column
        for position, column in enumerate(columns):
            if column is None:
                columns[position] = self.arrays[position]
        return columns

    def for_matrix(self) -> list[memoryview | pa.Array]:
        """Each column as `to_matrix` takes it: the bytes of numbers without nulls, arrays otherwise."""
        return [
            (self.arrays[place] if column.validity else column.values) if isinstance(column, Words) else column
            for place, column in enumerate(self.as_they_lie())
        ]


def packed_bits(bits: NDArray[np.bool_] | NDArray[np.uint8]) -> pa.Buffer:
    """A bitmap as Arrow has it."""
    return pa.py_buffer(np.packbits(bits.ravel(), bitorder="little"))


def value_buffer(values: NDArray[np.generic], kind: pa.DataType) -> pa.Buffer:
    """Contiguous values as the data buffer of an Arrow type: booleans are packed eight to a byte."""
    return packed_bits(values.view(np.uint8)) if kind == _BOOL else pa.py_buffer(values)


_BOOL = pa.bool_()
