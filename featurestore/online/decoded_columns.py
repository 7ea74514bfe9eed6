"""Columns as they come out of packed rows: numbers of one width in a block, a line a field, the rest as Arrow arrays.

Who sends columns on takes the bytes of the lines as they lie; everybody else asks for Arrow arrays, made then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class BlockLine(NamedTuple):
    """What a line of a block holds, and the wanted columns that it is."""

    type: pa.DataType
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """The lines of all blocks that one decoder makes: what is made for a layout once can be kept by it."""

    lines: tuple[BlockLine, ...]


@dataclass(slots=True, eq=False)
class WordBlock:
    """Values of one width: `rows` rows from `first` on of `words`, which is lines x all rows, C-contiguous.

    `nulls` has its shape, None where no value is null. Only a block of its own holds booleans, a byte each.
    """

    layout: BlockLayout
    words: NDArray[np.unsignedinteger]
    nulls: NDArray[np.bool_] | None
    first: int
    rows: int

    def part(self, first: int, rows: int) -> WordBlock:
        """`rows` of its rows from `first` on."""
        return WordBlock(self.layout, self.words, self.nulls, self.first + first, rows)

    def values(self) -> list[memoryview]:
        """The little-endian bytes of each line."""
        width = self.words.itemsize
        start, size, stride = self.first * width, self.rows * width, self.words.shape[1] * width
        flat = memoryview(self.words).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
        return [flat[at : at + size] for at in range(start, start + stride * len(self.layout.lines), stride)]

    def validity(self) -> dict[int, bytes]:
        """The bitmaps, by number, of the lines that have a null."""
        if self.nulls is None:
            return {}
        nulls = self.nulls[:, self.first : self.first + self.rows]
        some = np.flatnonzero(nulls.any(axis=1))
        bits = np.packbits(~nulls[some], axis=1, bitorder="little")
        return {line: own.tobytes() for line, own in zip(some.tolist(), bits, strict=True)}

    def arrays(self) -> Iterator[tuple[int, pa.Array]]:
        """(position, array) of every line: all rows are read as each of its types, and cut."""
        count = self.words.shape[1]
        validity = None if self.nulls is None else packed_bits(~self.nulls)
        blocks = {
            kind: pa.Array.from_buffers(kind, self.words.size, [validity, value_buffer(self.words, kind)])
            for kind in dict.fromkeys(line.type for line in self.layout.lines)
        }
        for number, line in enumerate(self.layout.lines):
            array = blocks[line.type].slice(number * count + self.first, self.rows)
            for position in line.positions:
                yield position, array


@dataclass(eq=False)
class DecodedColumns:
    """The wanted columns, in order: blocks, and arrays by position."""

    count: int
    blocks: Sequence[WordBlock]
    others: Mapping[int, pa.Array]

    @classmethod
    def of(cls, arrays: Sequence[pa.Array]) -> DecodedColumns:
        """Columns that are Arrow arrays already."""
        return cls(len(arrays), (), dict(enumerate(arrays)))

    def part(self, first: int, rows: int) -> DecodedColumns:
        """`rows` of the rows from `first` on."""
        others = {position: array.slice(first, rows) for position, array in self.others.items()}
        return DecodedColumns(self.count, [block.part(first, rows) for block in self.blocks], others)

    @property
    def layouts(self) -> tuple[BlockLayout, ...]:
        """The layouts of the blocks."""
        return tuple([block.layout for block in self.blocks])

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

    def array(self, position: int) -> pa.Array:
        """One column as an Arrow array."""
        found = self.others.get(position)
        return self.arrays[position] if found is None else found

    def for_matrix(self) -> list[memoryview | pa.Array]:
        """Each column as `to_matrix` takes it: the bytes of numbers without nulls, arrays otherwise."""
        columns: list[memoryview | pa.Array] = [None] * self.count
        for block in self.blocks:
            some_null = block.validity()
            for number, (line, values) in enumerate(zip(block.layout.lines, block.values(), strict=True)):
                for position in line.positions:
                    columns[position] = self.arrays[position] if number in some_null else values
        for position, array in self.others.items():
            columns[position] = array
        return columns


def packed_bits(bits: NDArray[np.bool_] | NDArray[np.uint8]) -> pa.Buffer:
    """A bitmap as Arrow has it."""
    return pa.py_buffer(np.packbits(bits.ravel(), bitorder="little"))


def value_buffer(values: NDArray[np.generic], kind: pa.DataType) -> pa.Buffer:
    """Contiguous values as the data buffer of an Arrow type: booleans are packed eight to a byte."""
    return packed_bits(values.view(np.uint8)) if kind == _BOOL else pa.py_buffer(values)


_BOOL = pa.bool_()
