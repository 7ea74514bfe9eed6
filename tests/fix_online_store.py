"""Keys and rows for tests of online stores: one int64 join key, rows ordered by sequence and told apart by value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.dtypes import Int64, String
from featurestore.field import Field
from featurestore.online.base import OnlineStore
from featurestore.online.keys import BUCKETS, bucket_of, encode_keys
from featurestore.online.row_codec import OrderKeys, RowDecoder, RowEncoder

VIEW = "weather@1"
FIELDS = [Field(name="value", dtype=Int64), Field(name="text", dtype=String)]
ALL_BUCKETS = np.arange(BUCKETS, dtype=np.uint16)


def keys_of(*numbers: int | None) -> pa.BinaryArray:
    return encode_keys([pa.array(numbers, pa.int64())], [Int64])


def rows_at(sequence: int, *values: int) -> pa.BinaryArray:
    """Rows of one event time, ordered by sequence alone; their texts have different lengths."""
    return rows_of(np.full(len(values), sequence, dtype=np.int64), values)


def rows_of(sequences: np.ndarray, values: tuple[int, ...] | list[int]) -> pa.BinaryArray:
    """The same with a sequence each."""
    same = np.zeros(len(values), dtype=np.int64)
    columns = [pa.array(values, pa.int64()), pa.array(["x" * (value % 7) for value in values], pa.string())]
    return RowEncoder(1, FIELDS).encode(OrderKeys(same, same, sequences.astype(np.int64)), columns)


def values_of(rows: pa.BinaryArray) -> list[int | None]:
    return RowDecoder({1: FIELDS}, FIELDS[:1]).decode(rows).columns[0].to_pylist()


def buckets(*numbers: int) -> set[int]:
    return set(bucket_of(keys_of(*numbers)).tolist())


def raised(store: OnlineStore, before: np.ndarray, ref: str = VIEW) -> set[int]:
    """The buckets whose token is another than before; a token never falls."""
    now = store.tokens(ref, ALL_BUCKETS)
    assert (now >= before).all()
    return set(np.flatnonzero(now != before).tolist())
