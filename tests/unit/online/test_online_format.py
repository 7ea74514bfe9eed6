"""docs/online-format.md: its test vectors are what the code writes and reads, and its numbers are the code's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.arrow_types import arrow_type
from featurestore.clock import from_us
from featurestore.dtypes import Bytes, Date, Decimal, DType, List, Timestamp, Vector, parse_dtype
from featurestore.field import Field
from featurestore.online import keys, row_layout, sqlite
from featurestore.online.row_codec import OrderKeys, RowDecoder, RowEncoder
from tests.strategies import bits
from tests.unit.online import format_reference as reference

PAGE = (Path(__file__).parents[3] / "docs" / "online-format.md").read_text(encoding="utf-8")
VECTORS = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])


def python_value(dtype: DType, written: Any) -> Any:
    """A value as the page writes it, as Python has it."""
    if written is None:
        return None
    match dtype:
        case List(element) | Vector(element, _):
            return [python_value(element, value) for value in written]
        case Decimal():
            return Number(written)
        case _ if dtype == Bytes:
            return bytes.fromhex(written)
        case _ if dtype == Timestamp:
            return from_us(written)
        case _ if dtype == Date:
            return date(1970, 1, 1) + timedelta(days=written)
        case _:
            return math.nan if written == "nan" else written


def typed_values(vector: Mapping[str, Any]) -> tuple[list[DType], list[Any]]:
    dtypes = [parse_dtype(text) for text in vector["types"]]
    return dtypes, [python_value(dtype, value) for dtype, value in zip(dtypes, vector["values"], strict=True)]


def columns_of(dtypes: list[DType], values: list[Any]) -> list[pa.Array]:
    return [pa.array([value], arrow_type(dtype)) for dtype, value in zip(dtypes, values, strict=True)]


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: str(vector["values"]))
def test_key_vectors(vector: Mapping[str, Any]) -> None:
    dtypes, values = typed_values(vector)

    encoded = keys.encode_keys(columns_of(dtypes, values), dtypes)

    assert encoded[0].as_py().hex() == vector["key"] == reference.key(dtypes, values).hex()
    assert keys.key_hash(encoded).tolist() == [int(vector["hash"], 16)]
    assert keys.bucket_of(encoded).tolist() == [vector["bucket"]]
    # Beside a longer key the hash takes another way to the same number.
    longer = pa.array([encoded[0].as_py(), b"x" * 31], pa.binary())
    assert keys.key_hash(longer)[0] == int(vector["hash"], 16)


@pytest.mark.parametrize("vector", VECTORS["rows"], ids=lambda vector: str(vector["values"]))
def test_row_vectors(vector: Mapping[str, Any]) -> None:
    dtypes, values = typed_values(vector)
    fields = [Field(name=f"f{index}", dtype=dtype) for index, dtype in enumerate(dtypes)]
    order = OrderKeys(*(np.array([number], dtype=np.int64) for number in vector["order"]))
    columns = columns_of(dtypes, values)

    row = RowEncoder(vector["schema_id"], fields).encode(order, columns)[0].as_py()
    decoded = RowDecoder({vector["schema_id"]: fields}, fields).decode(pa.array([row], pa.binary()))

    assert row.hex() == vector["row"] == reference.row(vector["order"], vector["schema_id"], dtypes, values).hex()
    assert [bits(column) for column in decoded.columns] == [bits(column) for column in columns]


def test_the_vectors_show_every_type_and_every_kind_of_key() -> None:
    row_types = {re.sub(r"[\d(<].*", "", text) for vector in VECTORS["rows"] for text in vector["types"]}
    assert row_types == {"bool", "int", "float", "string", "bytes", "timestamp", "date", "decimal", "list", "vector"}
    key_types = {text for vector in VECTORS["keys"] for text in vector["types"]}
    assert key_types == {"bool", "int32", "int64", "string", "bytes", "date"}


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    for stated in (
        f"## Key (version {keys.KEY_VERSION})",
        f"## Row (codec version {row_layout.CODEC_VERSION})",
        f"most {keys.KEY_BYTES_MAX} bytes",
        f"(0 to {keys.BUCKETS - 1})",
        f"| order key | {row_layout.ORDER_KEY_BYTES} |",
        f"page size {sqlite.PAGE_BYTES}, WAL",
        f"`application_id` {sqlite.APPLICATION_ID:#x}, `user_version` {sqlite.FORMAT_VERSION}",
    ):
        assert stated in PAGE, stated
