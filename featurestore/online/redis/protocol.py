"""Commands as bytes, made from whole Arrow arrays: what the server parses, without Python work per row.

A command is an array of bulk strings: `*2`, `$4`, `HLEN`, `$3`, `key`, each followed by CR LF.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.online import packing

_DOLLAR, _END, _NOTHING = (pa.scalar(text, pa.binary()) for text in (b"$", b"\r\n", b""))
#: From which length on a number has another digit.
_TENS = 10 ** np.arange(1, 11)


def bulk(value: bytes) -> bytes:
    """One argument."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def command(*arguments: bytes) -> bytes:
    """A whole command."""
    return head(len(arguments)) + b"".join(map(bulk, arguments))


def head(arguments: int) -> bytes:
    """How a command begins that has so many arguments, its name counted."""
    return b"*%d\r\n" % arguments


class Arguments:
    """Columns without nulls as arguments, line by line in an order; made a part at a time, just before it is sent."""

    def __init__(self, columns: Sequence[pa.BinaryArray], order: NDArray[np.int64]) -> None:
        self._columns, self._order = columns, order
        lines = [found for column in columns if (found := packing.to_matrix_view(column)) is not None and found.size]
        self._lines = lines if len(lines) == len(columns) else None
        sizes = np.sum([_argument_bytes(column) for column in columns], axis=0)
        #: Where each line's arguments begin, and where the last ones end.
        self.offsets = np.append(0, np.cumsum(sizes[order]))

    def part(self, own: slice = slice(None), chosen: NDArray[np.bool_] | None = None) -> pa.BinaryArray:
        """The arguments of some lines of the order, or of those of them that are chosen."""
        places = self._order[own] if chosen is None else self._order[own][chosen]
        packing.check_batch_bytes(self._bytes_of(own))
        if self._lines is not None:
            return _even_arguments(self._lines, places)
        pieces: list[Any] = []
        for column in self._columns:
            values = column.take(pa.array(places))
            pieces += (_DOLLAR, _lengths(values), _END, values, _END)
        return pc.binary_join_element_wise(*pieces, _NOTHING)

    def _bytes_of(self, own: slice) -> int:
        first, last, _ = own.indices(len(self._order))
        return int(self.offsets[last] - self.offsets[first])


def _argument_bytes(values: pa.BinaryArray) -> NDArray[np.int64]:
    """How long each value is as an argument."""
    sizes = np.diff(packing.byte_offsets(values)).astype(np.int64)
    return sizes + np.searchsorted(_TENS, sizes, side="right") + len(b"$0\r\n\r\n")


def _even_arguments(columns: Sequence[NDArray[np.uint8]], places: NDArray[np.int64]) -> pa.BinaryArray:
    """The same where all values of a column are as long: each byte is copied once, with a copy in the cache between."""
    before = [b"$%d\r\n" % lines.shape[1] for lines in columns]
    fields: list[tuple[str, str]] = []
    for number, (head, lines) in enumerate(zip(before, columns, strict=True)):
        fields += [(f"head{number}", f"V{len(head)}"), (f"value{number}", f"V{lines.shape[1]}"), (f"end{number}", "V2")]
    made = np.empty(len(places), dtype=fields)
    for number, (head, lines) in enumerate(zip(before, columns, strict=True)):
        made[f"head{number}"], made[f"end{number}"] = np.void(head), np.void(b"\r\n")
        made[f"value{number}"] = lines.view(f"V{lines.shape[1]}")[:, 0].take(places)
    return packing.from_matrix(made.view(np.uint8).reshape(len(places), made.dtype.itemsize))


def joined(arguments: pa.BinaryArray, edges: Sequence[int] | None = None) -> list[memoryview]:
    """Arguments one after the other, without a copy: those from each edge to the next, or all of them."""
    offsets = packing.byte_offsets(arguments)
    data = memoryview(packing.data_bytes(arguments).data)
    places = offsets[[0, -1] if edges is None else list(edges)].tolist()
    return [data[first:last] for first, last in pairwise(places)]


def _lengths(values: pa.BinaryArray) -> pa.BinaryArray | pa.BinaryScalar:
    """How long each value is, in digits; one number when all have the same length, which is five times as fast."""
    sizes = np.diff(packing.byte_offsets(values))
    if len(sizes) and int(sizes.min()) == int(sizes.max()):
        return pa.scalar(b"%d" % sizes[0], pa.binary())
    return pa.array(sizes).cast(pa.string()).cast(pa.binary())
