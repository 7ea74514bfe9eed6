"""Rows as digests of 128 bits: where a row stands (join keys and times), and what it says there.

Two rows of equal digests are taken for equal. A field that is null adds nothing, so a row says the same before and
after its view was given another field.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.compiler.names import CREATED, EVENT
from featurestore.feature_view import FeatureView
from featurestore.ingest.projection import row_digests
from featurestore.online import packing
from featurestore.online.keys import encode_keys
from featurestore.online.row_encoder import RowEncoder

DIGEST_BYTES = 16
#: (rows, 2) words.
Digests = NDArray[np.uint64]


def place_digests(view: FeatureView, rows: pa.Table) -> Digests:
    """Of the join keys and times of canonical rows."""
    columns = [rows.column(name).combine_chunks() for name in view.join_keys]
    keys = encode_keys(columns, list(view.join_keys.values()))
    times = [rows.column(name).combine_chunks().cast(pa.int64()).to_numpy() for name in (EVENT, CREATED)]
    words = np.ascontiguousarray(np.stack(times, axis=1)).view(np.uint8).reshape(rows.num_rows, DIGEST_BYTES)
    return row_digests(packing.join([packing.from_matrix(words), keys]))


def value_digests(view: FeatureView, rows: pa.Table) -> Digests:
    """Of the values of canonical rows, field by field."""
    digests = np.zeros((rows.num_rows, 2), dtype=np.uint64)
    for field in view.schema:
        column = rows.column(field.name).combine_chunks()
        payload = RowEncoder(0, [field]).payload([column])
        name = np.frombuffer(field.name.encode() + b"\0", dtype=np.uint8)
        named = packing.join([packing.from_matrix(np.tile(name, (rows.num_rows, 1))), payload])
        digests ^= np.where(packing.null_mask(column)[:, None], np.uint64(0), row_digests(named))
    return digests
