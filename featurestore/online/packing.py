"""Byte strings of many rows at once: the building blocks of keys and rows.

Everything here works on whole Arrow arrays; nothing knows what the bytes mean. `rows` is always a `pa.BinaryArray`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.errors import StoreError

#: Offsets of an Arrow binary array are int32.
BATCH_BYTES_MAX = 2**31 - 2

_EMPTY = pa.scalar(b"", pa.binary())

# Words go from Arrow buffers into rows and back as they lie in memory.
assert sys.byteorder == "little"


def as_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column in one piece, whatever its chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def null_mask(column: pa.Array) -> NDArray[np.bool_]:
    """True where the column is null."""
    if column.null_count == 0:
        return np.zeros(len(column), dtype=np.bool_)
    return column.is_null().to_numpy(zero_copy_only=False)


def buffer_bytes(buffer: pa.Buffer | None) -> NDArray[np.uint8]:
    """A buffer as bytes, without a copy; Arrow may leave the buffer of an empty array out."""
    return np.frombuffer(b"" if buffer is None else buffer, dtype=np.uint8)


def byte_offsets(rows: pa.BinaryArray) -> NDArray[np.int32]:
    """Where each row starts in the data buffer, and where the last one ends: one more than there are rows."""
    if len(rows) == 0:
        return np.zeros(1, dtype=np.int32)
    offsets = np.frombuffer(rows.buffers()[1], dtype=np.int32)
    return offsets[rows.offset : rows.offset + len(rows) + 1]


def data_bytes(rows: pa.BinaryArray) -> NDArray[np.uint8]:
    """The whole data buffer, to be read through `byte_offsets`."""
    return buffer_bytes(rows.buffers()[2])


def from_offsets(offsets: NDArray[np.int32], data: pa.Buffer | NDArray[np.uint8]) -> pa.BinaryArray:
    """Rows without nulls from their offsets and bytes."""
    return pa.BinaryArray.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def from_matrix(matrix: NDArray[np.uint8]) -> pa.BinaryArray:
    """Each line of a C-contiguous matrix as one row, without a copy."""
    count, width = matrix.shape
    check_batch_bytes(count * width)
    return from_offsets(np.arange(count + 1, dtype=np.int32) * np.int32(width), matrix)


def to_matrix_view(rows: pa.BinaryArray) -> NDArray[np.uint8] | None:
    """The rows as lines of a matrix, without a copy; None unless all have the same length."""
    count = len(rows)
    offsets = byte_offsets(rows)
    first, last = int(offsets[0]), int(offsets[-1])
    width = (last - first) // max(count, 1)
    if count > 1 and np.count_nonzero(offsets[1:] - offsets[:-1] != width):
        return None
    return data_bytes(rows)[first:last].reshape(count, width)


def first_bytes(rows: pa.BinaryArray, width: int) -> NDArray[np.uint8]:
    """The first `width` bytes of each row as a matrix; no row may be shorter."""
    heads = to_matrix_view(pc.binary_slice(rows, 0, width))
    assert heads is not None
    assert heads.shape == (len(rows), width)
    return heads


def join(pieces: Sequence[pa.BinaryArray]) -> pa.BinaryArray:
    """Row by row, the pieces one after the other; null where any piece is."""
    if len(pieces) == 1:
        return pieces[0]
    check_batch_bytes(sum(int(offsets[-1]) - int(offsets[0]) for offsets in map(byte_offsets, pieces)))
    return pc.binary_join_element_wise(*pieces, _EMPTY)


def check_batch_bytes(count: int) -> None:
    """StoreError when one batch would need more bytes than Arrow can address."""
    if count > BATCH_BYTES_MAX:
        raise StoreError(
            f"one batch of rows takes {count:,} bytes, at most {BATCH_BYTES_MAX:,} fit; use smaller batches"
        )
