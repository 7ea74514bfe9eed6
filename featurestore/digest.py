"""A digest of a table's content: the same for equal values in equal order, whatever file, chunking or engine held them.

Per column, over canonical bytes: one validity byte a value, values with nulls zeroed (NaN one pattern, -0.0 kept),
for variable values their lengths and bytes. Encodings without meaning (dictionaries, large offsets) do not count;
types do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import InputError

VERSION = "featurestore-content/1"
SLICE_ROWS = 1 << 16
#: Columns are digested side by side; SHA-256 lets go of the interpreter meanwhile.
THREADS = 4


def content_digest(table: pa.Table) -> str:
    """SHA-256 in hex over names, types, row count and canonical bytes of every column."""
    total = hashlib.sha256(f"{VERSION}\n{table.num_rows}\n".encode())
    with ThreadPoolExecutor(THREADS) as threads:
        for digest in threads.map(column_digest, table.column_names, table.columns):
            total.update(digest)
    return total.hexdigest()


def column_digest(name: str, column: pa.ChunkedArray) -> bytes:
    """SHA-256 of one column; InputError for a type without canonical bytes (a union, say)."""
    kind = type_text(name, column.type)
    parts: dict[str, hashlib._Hash] = {}
    for chunk in column.chunks:
        for start in range(0, len(chunk), SLICE_ROWS):
            for part, data in _canonical_parts(_plain(chunk.slice(start, SLICE_ROWS)), ""):
                parts.setdefault(part, hashlib.sha256()).update(data)
    digest = hashlib.sha256(f"{name}\0{kind}\0".encode())
    for part in sorted(parts):
        digest.update(part.encode() + parts[part].digest())
    return digest.digest()


def type_text(name: str, kind: pa.DataType) -> str:
    """A type without its encodings: Parquet calls a list's values `element`, Arrow `item`, and neither matters."""
    if isinstance(kind, pa.BaseExtensionType):
        return type_text(name, kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return type_text(name, kind.value_type)
    if (finer := _finer(kind)) is not None:
        return str(finer)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "binary"
    if pa.types.is_map(kind):
        return f"map<{type_text(name, kind.key_type)},{type_text(name, kind.item_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{type_text(name, kind.value_type)}>[{kind.list_size}]"
    if any(test(kind) for test in _LISTS):
        return f"list<{type_text(name, kind.value_type)}>"
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return f"struct<{','.join(f'{field.name}:{type_text(name, field.type)}' for field in fields)}>"
    if pa.types.is_union(kind):
        raise InputError(f"column {name!r} holds {kind}, which has no canonical bytes; drop the column or convert it")
    return str(kind)


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)


def _finer(kind: pa.DataType) -> pa.DataType | None:
    """The type that stands for coarser ones, which file formats do not tell apart."""
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time32(kind):
        return pa.time64("us")
    return pa.date32() if pa.types.is_date64(kind) else None


def _plain(column: pa.Array) -> pa.Array:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.storage)
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(column))
    if (finer := _finer(kind)) is not None:
        return column.cast(finer, safe=False)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary())
    if pa.types.is_map(kind):
        return column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    return column


def _canonical_parts(column: pa.Array, at: str) -> Iterator[tuple[str, bytes]]:
    """(name of the part, bytes) of an array; nested arrays give the parts of their children too."""
    kind = column.type
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    yield f"{at}/valid", valid.astype(np.uint8).tobytes()
    if pa.types.is_null(kind):
        return
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            child = kind.field(index)
            yield from _canonical_parts(_plain(pc.struct_field(column, [index])), f"{at}/{child.name}")
    elif any(test(kind) for test in _LISTS) or pa.types.is_fixed_size_list(kind):
        lengths = np.where(valid, pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False), 0)
        yield f"{at}/lengths", lengths.astype("<i4").tobytes()
        yield from _canonical_parts(_plain(column.flatten()), f"{at}/items")
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        lengths = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        yield f"{at}/lengths", lengths.astype("<i4").tobytes()
        yield f"{at}/bytes", _text_bytes(column.drop_null())
    else:
        yield f"{at}/values", _fixed_bytes(column)


def _fixed_bytes(column: pa.Array) -> bytes:
    """Little-endian values of a fixed-width column, nulls as zero bytes."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
    width = kind.bit_width // 8
    buffer = column.buffers()[1]
    start = column.offset * width
    values = np.frombuffer(buffer, dtype=np.uint8, count=len(column) * width, offset=start).reshape(-1, width).copy()
    values[~column.is_valid().to_numpy(zero_copy_only=False)] = 0
    if pa.types.is_floating(kind):
        floats = values.view(f"<f{width}")
        floats[np.isnan(floats)] = np.nan
    return values.tobytes()


def _text_bytes(column: pa.Array) -> bytes:
    """The bytes of strings or binary values without nulls, one after the other."""
    if len(column) == 0:
        return b""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32, count=len(column) + 1, offset=4 * column.offset)
    return b"" if data is None else data.slice(int(ends[0]), int(ends[-1] - ends[0])).to_pybytes()
