"""The matrix: every value is the nearest float32, rounded once; a row's bits depend on that row alone."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import (
    Bool,
    Bytes,
    Date,
    Decimal,
    DType,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.errors import InputError
from featurestore.field import Field
from featurestore.matrix import MatrixPlan, to_matrix
from tests.fix_properties import thoroughly
from tests.strategies import AWKWARD_TEXTS, columns, values

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
#: Beyond this, halfway between the greatest float32 and what would come next, a value rounds to infinity.
OVERFLOW = (2 - 2**-24) * 2.0**127
MATRIX_TYPES = (Bool, Int32, Int64, Float32, Float64)


def matrix_of(dtype: DType, *data: Any, fill: float | None = None, **contract: Any) -> np.ndarray:
    field = Field(name="x", dtype=dtype, **contract)
    plan = MatrixPlan.compile([("x", field, fill)])
    return to_matrix(plan, [pa.array(data, arrow_type(dtype))])


def float32_bits(matrix: np.ndarray) -> list[int]:
    return matrix.view(np.uint32).ravel().tolist()


def nearest_float32(value: float) -> float:
    """The float32 nearest to a finite number, ties to even, by exact arithmetic; infinite beyond the range."""
    exact = abs(Fraction(value))
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(exact / step) * step  # round() of a Fraction goes to even on ties
    return math.copysign(float(rounded) if rounded < 2**128 else math.inf, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**24 + 1, 2**24),
        (2**24 + 3, 2**24 + 4),
        (-(2**24) - 1, -(2**24)),
        (2**53 - 1, 2**53),
        (2**53 + 1, 2**53),
        # One above a tie of float32; a stop at float64 would lose the 1 and round down to even.
        (2**60 + 2**36 + 1, 2**60 + 2**37),
        (2**54 + 2**30 + 1, 2**54 + 2**31),
        (-(2**60) - 2**36 - 1, -(2**60) - 2**37),
        (2**63 - 1, 2**63),
        (-(2**63), -(2**63)),
    ],
)
def test_int64_is_rounded_once(value: int, expected: int) -> None:
    for count in (1, 7, 64):  # whatever loop the hardware takes
        assert matrix_of(Int64, *[value] * count).ravel().tolist() == [float(expected)] * count


@thoroughly
@given(st.data(), st.sampled_from([Int32, Int64, Float32, Float64]))
def test_every_number_is_the_nearest_float32(data: st.DataObject, dtype: DType) -> None:
    numbers = data.draw(st.lists(values(dtype), min_size=1, max_size=20))
    expected = [number if not math.isfinite(number) else nearest_float32(number) for number in numbers]
    finite = [number for number in numbers if math.isfinite(number)]
    if any(math.isinf(nearest_float32(number)) for number in finite):
        with pytest.raises(InputError, match=r"x: .* is beyond float32"):
            matrix_of(dtype, *numbers)
        return

    assert float32_bits(matrix_of(dtype, *numbers)) == float32_bits(np.array(expected, dtype=np.float32))


def test_every_float32_stays_as_it_is() -> None:
    patterns = np.concatenate([np.arange(0, 2**32, 65_537, dtype=np.uint64), [0, 2**31, 0x7F800000, 0x7FC00000, 1]])
    given_bits = patterns.astype(np.uint32)
    numbers = given_bits.view(np.float32)
    plain = ~np.isnan(numbers)
    plan = MatrixPlan.compile([("x", Field(name="x", dtype=Float32), None)])

    assert (to_matrix(plan, [pa.array(numbers[plain])]).view(np.uint32)[:, 0] == given_bits[plain]).all()
    doubles = MatrixPlan.compile([("x", Field(name="x", dtype=Float64), None)])
    exact = numbers[plain].astype(np.float64)
    assert (to_matrix(doubles, [pa.array(exact)]).view(np.uint32)[:, 0] == given_bits[plain]).all()


def test_nan_is_the_one_quiet_nan_and_zeros_keep_their_sign() -> None:
    for dtype in (Float32, Float64):
        assert float32_bits(matrix_of(dtype, math.nan, -0.0, 0.0, None)) == [0x7FC00000, 0x80000000, 0, 0x7FC00000]


def test_the_greatest_float32_fits_and_the_first_number_beyond_is_refused_by_field_and_row() -> None:
    below = math.nextafter(OVERFLOW, 0)
    assert matrix_of(Float64, FLOAT32_MAX, below, -below).ravel().tolist() == [FLOAT32_MAX, FLOAT32_MAX, -FLOAT32_MAX]
    assert matrix_of(Float64, math.inf, -math.inf).ravel().tolist() == [math.inf, -math.inf]
    for number in (OVERFLOW, -OVERFLOW, 1e300):
        with pytest.raises(InputError, match=r"^x: .* in row 2 is beyond float32; bound the field"):
            matrix_of(Float64, 0.0, None, number)
    with pytest.raises(InputError, match=r"^x\[1\]: .* in row 1 is beyond float32"):
        matrix_of(Vector(Float64, 2), [0.0, 0.0], [0.0, 1e39])


def test_what_lies_under_a_null_is_never_seen() -> None:
    validity = pa.py_buffer(b"\x02")
    number = pa.Array.from_buffers(pa.float64(), 2, [validity, pa.py_buffer(np.array([1e300, 1.5]))])
    vector = pa.Array.from_buffers(
        pa.list_(pa.float64(), 2), 2, [validity], children=[pa.array([1e300, math.nan, 1.0, 2.0])]
    )
    fields = [Field(name="number", dtype=Float64), Field(name="vector", dtype=Vector(Float64, 2))]
    plan = MatrixPlan.compile([(field.name, field, -1.0) for field in fields])

    assert to_matrix(plan, [number, vector]).tolist() == [[-1.0, -1.0, -1.0], [1.5, 1.0, 2.0]]


def test_columns_stand_in_order_with_vectors_expanded() -> None:
    fields = [
        Field(name="flag", dtype=Bool),
        Field(name="pair", dtype=Vector(Int32, 2)),
        Field(name="single", dtype=Vector(Bool, 1)),
        Field(name="count", dtype=Int64),
        Field(name="carrier", dtype=String, allowed_values=["AA", "UA", "DL"]),
        Field(name="other", dtype=Vector(Float32, 2)),
    ]
    plan = MatrixPlan.compile([(field.name, field, None) for field in fields])
    data = [[True, False], [[1, 2], [3, 4]], [[False], [True]], [5, 6], ["DL", "AA"], [[0.5, 1.5], [2.5, 3.5]]]
    arrays = [pa.array(column, arrow_type(field.dtype)) for column, field in zip(data, fields, strict=True)]

    matrix = to_matrix(plan, arrays)

    assert plan.names == ("flag", "pair[0]", "pair[1]", "single[0]", "count", "carrier", "other[0]", "other[1]")
    assert plan.width == 8
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 1, 2, 0, 5, 2, 0.5, 1.5], [0, 3, 4, 1, 6, 0, 2.5, 3.5]]


def test_nulls_take_the_fill_of_their_column_rounded_once() -> None:
    fill = 0.1
    (rounded,) = struct.unpack("<f", struct.pack("<f", fill))
    for dtype in MATRIX_TYPES:
        one = True if dtype == Bool else 1
        assert matrix_of(dtype, None, one, fill=fill).ravel().tolist() == [rounded, 1.0]
        assert math.isnan(matrix_of(dtype, None)[0, 0])
        assert matrix_of(Vector(dtype, 2), None, [one, one], fill=fill).tolist() == [[rounded] * 2, [1.0] * 2]
    assert matrix_of(String, None, "b", fill=-1.0, allowed_values=["a", "b"]).ravel().tolist() == [-1.0, 1.0]
    assert math.isinf(matrix_of(Int64, None, fill=math.inf)[0, 0])


def test_a_string_that_is_not_allowed_is_refused_by_field_and_row() -> None:
    with pytest.raises(InputError, match=r"^x: 'ZZ' in row 2 is not among its allowed values"):
        matrix_of(String, "a", None, "ZZ", allowed_values=["a"])


def test_strings_become_their_place_among_the_allowed_values() -> None:
    places = matrix_of(String, *reversed(AWKWARD_TEXTS), allowed_values=AWKWARD_TEXTS).ravel().tolist()

    assert places == list(reversed(range(len(AWKWARD_TEXTS))))


def test_types_without_a_cast_are_refused_all_at_once_by_name() -> None:
    refused = [String, Bytes, Timestamp, Date, Decimal(5, 2), List(Float32), List(Int64)]
    fields = [Field(name=f"f{index}", dtype=dtype) for index, dtype in enumerate([Float32, *refused])]

    with pytest.raises(InputError, match="no place for") as caught:
        MatrixPlan.compile([(f"out_{field.name}", field, None) for field in fields])

    for index, dtype in enumerate(refused):
        assert f"out_f{index + 1} ({dtype})" in str(caught.value)
    assert "out_f0" not in str(caught.value)


def test_a_fill_beyond_float32_is_refused() -> None:
    with pytest.raises(InputError, match=r"x \(its fill 1e\+39 is beyond float32\)"):
        MatrixPlan.compile([("x", Field(name="x", dtype=Float32), 1e39)])


def test_lossy_names_what_can_lose_digits_and_nothing_else() -> None:
    fields = [
        Field(name="flag", dtype=Bool),
        Field(name="small", dtype=Float32),
        Field(name="double", dtype=Float64),
        Field(name="long", dtype=Int64),
        Field(name="int", dtype=Int32),
        Field(name="bounded", dtype=Int64, ge=-(2**24), le=2**24),
        Field(name="half_bounded", dtype=Int32, ge=0),
        Field(name="pair", dtype=Vector(Float64, 2)),
        Field(name="carrier", dtype=String, allowed_values=["a"]),
    ]

    plan = MatrixPlan.compile([(field.name, field, None) for field in fields])

    assert plan.lossy == ("double", "long", "int", "half_bounded", "pair")


@st.composite
def batches(draw: st.DrawFn) -> tuple[MatrixPlan, list[pa.Array]]:
    element = st.sampled_from(MATRIX_TYPES)
    dtypes = draw(st.lists(st.one_of(element, st.builds(Vector, element, st.integers(1, 3))), min_size=1, max_size=5))
    fills = draw(st.lists(st.sampled_from([None, 0.0, -1.5, math.inf]), min_size=len(dtypes), max_size=len(dtypes)))
    fields = [Field(name=f"f{index}", dtype=dtype) for index, dtype in enumerate(dtypes)]
    plan = MatrixPlan.compile(zip((field.name for field in fields), fields, fills, strict=True))
    count = draw(st.integers(0, 8))
    return plan, [draw(columns(dtype, count)) for dtype in dtypes]


@thoroughly
@given(batches(), st.integers(0, 8))
def test_bits_do_not_depend_on_where_the_rows_are_cut(batch: tuple[MatrixPlan, list[pa.Array]], cut: int) -> None:
    plan, arrays = batch
    try:
        whole = to_matrix(plan, arrays)
    except InputError:
        assume(False)
    chunked = [pa.chunked_array([array[:cut], array[cut:]], array.type) for array in arrays]

    assert float32_bits(to_matrix(plan, chunked)) == float32_bits(whole)
    parts = [to_matrix(plan, [array[:cut] for array in arrays]), to_matrix(plan, [array[cut:] for array in arrays])]
    assert float32_bits(np.concatenate(parts)) == float32_bits(whole)
    single = [to_matrix(plan, [array.slice(row, 1) for array in arrays]) for row in range(len(arrays[0]))]
    assert [bits for line in single for bits in float32_bits(line)] == float32_bits(whole)


def test_a_plan_of_nothing_gives_a_matrix_of_nothing() -> None:
    assert to_matrix(MatrixPlan.compile([]), []).shape == (0, 0)
    assert matrix_of(Float32).shape == (0, 1)


def test_a_column_of_another_type_is_a_defect_of_the_caller() -> None:
    plan = MatrixPlan.compile([("x", Field(name="x", dtype=Int64), None)])
    with pytest.raises(AssertionError, match="int32 is not int64"):
        to_matrix(plan, [pa.array([1], pa.int32())])
