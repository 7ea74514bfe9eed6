"""Commands as bytes, made from whole Arrow arrays: what the server parses, without Python work per row.

A command is an array of bulk strings: `*2`, `$4`, `HLEN`, `$3`, `key`, each followed by CR LF.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.online import packing

_DOLLAR, _END, _END_DOLLAR, _NOTHING = (pa.scalar(text, pa.binary()) for text in (b"$", b"\r\n", b"\r\n$", b""))
#: What the lengths before two bulk strings may take.
_LENGTHS_BYTES = 2 * len(b"$1234567890\r\n\r\n")


def bulk(value: bytes) -> bytes:
    """One argument."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def command(*arguments: bytes) -> bytes:
    """A whole command."""
    return head(len(arguments)) + b"".join(map(bulk, arguments))


def head(arguments: int) -> bytes:
    """How a command begins that has so many arguments, its name counted."""
    return b"*%d\r\n" % arguments


def bulks(values: pa.BinaryArray) -> pa.BinaryArray:
    """Each value as an argument; there are no nulls."""
    packing.check_batch_bytes(_size(values) + len(values) * _LENGTHS_BYTES)
    return pc.binary_join_element_wise(_DOLLAR, _lengths(values), _END, values, _END, _NOTHING)


def bulk_pairs(keys: pa.BinaryArray, rows: pa.BinaryArray, order: NDArray[np.int64]) -> pa.BinaryArray:
    """Each key and its row as two arguments, in the given order; there are no nulls."""
    packing.check_batch_bytes(_size(keys) + _size(rows) + len(keys) * _LENGTHS_BYTES)
    key_lines, row_lines = packing.to_matrix_view(keys), packing.to_matrix_view(rows)
    if key_lines is not None and row_lines is not None:
        return _even_pairs(key_lines, row_lines, order)
    places = pa.array(order)
    keys, rows = keys.take(places), rows.take(places)
    return pc.binary_join_element_wise(
        _DOLLAR, _lengths(keys), _END, keys, _END_DOLLAR, _lengths(rows), _END, rows, _END, _NOTHING
    )


def _even_pairs(keys: NDArray[np.uint8], rows: NDArray[np.uint8], order: NDArray[np.int64]) -> pa.BinaryArray:
    """The same where all keys are as long, and all rows: one copy of each byte."""
    before_key, before_row = (b"$%d\r\n" % lines.shape[1] for lines in (keys, rows))
    pieces = (before_key, keys, b"\r\n" + before_row, rows, b"\r\n")
    width = sum(len(piece) if isinstance(piece, bytes) else piece.shape[1] for piece in pieces)
    pairs = np.empty((len(order), width), dtype=np.uint8)
    at = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            end = at + len(piece)
            pairs[:, at:end] = np.frombuffer(piece, dtype=np.uint8)
        else:
            end = at + piece.shape[1]
            pairs[:, at:end] = piece[order]
        at = end
    return packing.from_matrix(pairs)


def joined(arguments: pa.BinaryArray, edges: Sequence[int] | None = None) -> list[memoryview]:
    """Arguments one after the other, without a copy: those from each edge to the next, or all of them."""
    offsets = packing.byte_offsets(arguments)
    data = memoryview(packing.data_bytes(arguments).data)
    places = offsets[[0, -1] if edges is None else list(edges)].tolist()
    return [data[first:last] for first, last in pairwise(places)]


def _size(values: pa.BinaryArray) -> int:
    offsets: NDArray[np.int32] = packing.byte_offsets(values)
    return int(offsets[-1]) - int(offsets[0])


def _lengths(values: pa.BinaryArray) -> pa.BinaryArray | pa.BinaryScalar:
    """How long each value is, in digits; one number when all have the same length, which is five times as fast."""
    sizes = np.diff(packing.byte_offsets(values))
    if len(sizes) and int(sizes.min()) == int(sizes.max()):
        return pa.scalar(b"%d" % sizes[0], pa.binary())
    return pa.array(sizes).cast(pa.string()).cast(pa.binary())
