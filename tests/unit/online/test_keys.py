"""Keys: one meaning, one encoding; and no two that meet."""

from __future__ import annotations

import datetime
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import Bool, Bytes, Date, DType, Int32, Int64, String
from featurestore.errors import InputError
from featurestore.online.keys import BUCKETS, KEY_BYTES_MAX, bucket_of, encode_keys, key_hash
from tests.fix_properties import thoroughly
from tests.strategies import bits, columns, join_key_dtypes
from tests.unit.online import format_reference as reference


def encode(*join_keys: tuple[DType, list[Any]]) -> list[bytes | None]:
    arrays = [pa.array(values, arrow_type(dtype)) for dtype, values in join_keys]
    return encode_keys(arrays, [dtype for dtype, _ in join_keys]).to_pylist()


@st.composite
def key_columns(draw: st.DrawFn) -> tuple[list[DType], list[pa.Array]]:
    dtypes = draw(st.lists(join_key_dtypes(), min_size=1, max_size=3))
    size = draw(st.integers(0, 8))
    return dtypes, [draw(columns(dtype, size)) for dtype in dtypes]


@thoroughly
@given(key_columns())
def test_keys_and_buckets_are_those_of_the_written_format(drawn: tuple[list[DType], list[pa.Array]]) -> None:
    dtypes, arrays = drawn
    lines = list(zip(*map(bits, arrays), strict=True))
    expected = [None if None in line else reference.key(dtypes, line) for line in lines]

    keys = encode_keys(arrays, dtypes)

    assert keys.to_pylist() == expected
    assert bucket_of(keys).tolist() == [0 if key is None else reference.bucket(key) for key in expected]
    assert key_hash(keys).tolist() == [0 if key is None else reference.key_hash(key) for key in expected]
    chunked = [pa.chunked_array([array[:3], array[3:]], array.type) for array in arrays]
    assert encode_keys(chunked, dtypes).equals(keys)


def test_keys_that_look_alike_stay_apart() -> None:
    lines = [("a", "b|c"), ("a|b", "c"), ("", "ab|c"), ("a", ""), ("", "a"), ("1", "23"), ("12", "3"), ("a\x01s", "b")]

    keys = encode((String, [first for first, _ in lines]), (String, [second for _, second in lines]))

    assert len(set(keys)) == len(lines)


def test_types_stay_apart_where_values_look_alike() -> None:
    one_of_each = [
        *encode((Int64, [1])),
        *encode((Bool, [True])),
        *encode((String, ["1"])),
        *encode((Bytes, [b"1"])),
        *encode((Date, [datetime.date(1970, 1, 2)])),
    ]

    assert len(set(one_of_each)) == len(one_of_each)


@pytest.mark.parametrize("arrow", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()])
@pytest.mark.parametrize("declared", [Int32, Int64])
def test_integers_encode_alike_whatever_their_width(arrow: pa.DataType, declared: DType) -> None:
    assert encode_keys([pa.array([0, 7, 127], arrow)], [declared]).to_pylist() == encode((Int64, [0, 7, 127]))


def test_integers_beyond_2_to_the_53_stay_apart() -> None:
    assert len(set(encode((Int64, [2**53, 2**53 + 1, -(2**63), 2**63 - 1])))) == 4


def test_integers_and_dates_sort_as_their_keys_do() -> None:
    numbers = [-(2**63), -(2**53) - 1, -1, 0, 1, 255, 256, 2**63 - 1]
    days = [datetime.date.min, datetime.date(1969, 12, 31), datetime.date(1970, 1, 1), datetime.date.max]

    for keys in (encode((Int64, numbers)), encode((Date, days))):
        assert all(first < second for first, second in pairwise(keys) if first and second)


def test_an_integer_beyond_int64_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'tail'.*does not fit int64"):
        encode_keys([pa.array([2**63], pa.uint64())], [Int64], ["tail"])


def test_the_longest_key_fits_and_a_longer_one_is_refused_by_name() -> None:
    most = KEY_BYTES_MAX - len(reference.key([Int64, String], [1, ""]))
    names = ["carrier", "tail"]

    def keys(length: int) -> pa.BinaryArray:
        return encode_keys([pa.array([1, 1]), pa.array(["x", "x" * length])], [Int64, String], names)

    assert len(keys(most)[1].as_py()) == KEY_BYTES_MAX
    with pytest.raises(InputError, match=rf"'tail': the value in row 1 has {most + 1} bytes"):
        keys(most + 1)
    with pytest.raises(InputError, match="number 1:"):
        encode_keys([pa.array(["x" * 2000])], [String])


def test_buckets_are_even() -> None:
    count = 400_000
    expected = count / BUCKETS
    texts = pa.array([f"N{number}UA" for number in range(count)])

    for keys in (encode_keys([pa.array(range(count))], [Int64]), encode_keys([texts], [String])):
        sizes = np.bincount(bucket_of(keys), minlength=BUCKETS)
        assert len(sizes) == BUCKETS
        assert abs(sizes - expected).max() < 6 * expected**0.5
        assert abs(sizes.std() / expected**0.5 - 1) < 0.05  # as random as a Poisson process


def test_one_batch_or_many_make_the_same_keys_with_the_same_number_of_calls() -> None:
    def calls(count: int) -> int:
        arrays = [pa.array(range(count)), pa.array([f"x{number:08}" for number in range(count)])]
        encode_keys(arrays, [Int64, String])  # whatever is cached, is cached now
        seen = 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            bucket_of(encode_keys(arrays, [Int64, String]))
        finally:
            sys.setprofile(None)
        return seen

    assert calls(10) == calls(10_000)
