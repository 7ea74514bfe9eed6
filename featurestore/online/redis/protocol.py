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


def bulk_pairs(keys: pa.BinaryArray, rows: pa.BinaryArray) -> pa.BinaryArray:
    """Each key and its row as two arguments; there are no nulls."""
    packing.check_batch_bytes(_size(keys) + _size(rows) + len(keys) * _LENGTHS_BYTES)
    return pc.binary_join_element_wise(
        _DOLLAR, _lengths(keys), _END, keys, _END_DOLLAR, _lengths(rows), _END, rows, _END, _NOTHING
    )


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
