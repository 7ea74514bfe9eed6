"""Requests read by the shape of an earlier one are what parsing them says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InputError
from featurestore_client import arrow_columns
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.request_shapes import LATER_EACH, SAME_SIZE_MAX, SHAPES_MAX, TRIED_MAX, RequestShapes
from serving.wire import Limits, LookupRequest, decode_lookup

parse = partial(decode_lookup, limits=Limits())
TYPES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.date32(): st.integers(-100, 100),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=3),
    pa.binary(): st.binary(max_size=3),
}


def read(shapes: RequestShapes, message: bytes) -> LookupRequest:
    """As the engine does."""
    known = shapes.known(message)
    if known is None:
        shapes.learn(message, known := parse(message))
    return known


def request(keys: dict[str, pa.Array], fields: dict[str, pa.Array] | None = None, **more: object) -> bytes:
    message = pb.GetOnlineFeaturesRequest(
        keys=[arrow_columns.from_arrow(name, column) for name, column in keys.items()],
        request_fields=[arrow_columns.from_arrow(name, column) for name, column in (fields or {}).items()],
        **{"service": "fares", **more},  # type: ignore[arg-type]
    )
    return message.SerializeToString()


def flights(*numbers: int) -> bytes:
    return request({"flight": pa.array(numbers, pa.int64())})


def columns(rows: int, nulls: bool) -> st.SearchStrategy[pa.Array]:
    def of(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
        value = st.none() | TYPES[kind] if nulls else TYPES[kind]
        return st.lists(value, min_size=rows, max_size=rows).map(lambda values: pa.array(values, kind))

    return st.sampled_from(list(TYPES)).flatmap(of)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    rows, nulls = draw(st.integers(0, 4)), draw(st.booleans())
    names = draw(st.lists(st.sampled_from(["a", "b", "flight"]), unique=True, max_size=3))
    keys = {name: draw(columns(rows, nulls)) for name in names}
    fields = {"distance": draw(columns(rows, nulls))} if draw(st.booleans()) else {}
    more: dict[str, object] = draw(
        st.sampled_from([{}, {"max_age_us": 5}, {"full_feature_names": True}, {"reply_format": pb.REPLY_FORMAT_MATRIX}])
    )
    return request(keys, fields, **more)


def seen(asked: LookupRequest) -> tuple[object, ...]:
    columns = [
        [(name, column.type, column.to_pylist()) for name, column in own.items()] for own in (asked.keys, asked.request)
    ]
    return asked.choice, asked.max_age, asked.reply_format, columns


def outcome(message: bytes, decode: Callable[[bytes], LookupRequest]) -> object:
    try:
        return seen(decode(message))
    except InputError as error:
        return str(error)


@given(st.lists(messages(), min_size=1, max_size=8))
def test_a_request_read_by_shape_is_the_parsed_one(many: list[bytes]) -> None:
    shapes = RequestShapes(parse)
    for message in many * 2:
        assert seen(read(shapes, message)) == seen(parse(message))


@given(messages(), st.binary(max_size=9), st.integers(0, 200), st.integers(0, 200))
def test_a_message_changed_anywhere_is_read_or_refused_as_parsing_does(
    message: bytes, piece: bytes, first: int, last: int
) -> None:
    shapes = RequestShapes(parse)
    read(shapes, message)
    changed = message[:first] + piece + message[min(first, last) :]
    assert outcome(changed, partial(read, shapes)) == outcome(changed, parse)


def test_the_second_request_of_a_shape_is_known() -> None:
    shapes = RequestShapes(parse)
    assert shapes.known(flights(3, 8)) is None
    read(shapes, flights(3, 8))
    known = shapes.known(flights(5, -1))
    assert known is not None
    assert known.keys["flight"].to_pylist() == [5, -1]
    assert shapes.known(flights(5, -1, 7)) is None


def test_composite_keys_have_a_shape_too() -> None:
    def asked(day: int, flight: int) -> bytes:
        return request({"day": pa.array([day], pa.int32()), "flight": pa.array([flight], pa.int64())})

    shapes = RequestShapes(parse)
    read(shapes, asked(20_000, 77))
    known = shapes.known(asked(1, 2))
    assert known is not None
    assert {name: column.to_pylist() for name, column in known.keys.items()} == {"day": [1], "flight": [2]}


def test_values_that_stand_elsewhere_in_the_message_too_are_not_taken_for_it() -> None:
    value = int.from_bytes(b"flightno", "little")
    shapes = RequestShapes(parse)
    for number in (value, value + 1, 0):
        asked = read(shapes, request({"flightno": pa.array([number], pa.int64())}))
        assert asked.keys["flightno"].to_pylist() == [number]


def of_many_sizes(count: int, number: int) -> list[bytes]:
    """Requests of `count` shapes, few of one size."""
    sizes = ((size, rows) for size in itertools.count(1) for rows in range(1, 9))
    return [
        request({"k" * size: pa.array([number] * rows, pa.int64())}) for size, rows in itertools.islice(sizes, count)
    ]


def test_the_number_of_shapes_is_bounded_and_the_oldest_goes() -> None:
    shapes = RequestShapes(parse)
    for message in of_many_sizes(TRIED_MAX, 12_345):
        read(shapes, message)
    known = [shapes.known(message) is not None for message in of_many_sizes(TRIED_MAX, 54_321)]
    assert known == [False] * (TRIED_MAX - SHAPES_MAX) + [True] * SHAPES_MAX


def test_a_new_shape_is_learned_even_late() -> None:
    shapes = RequestShapes(parse)
    for message in of_many_sizes(TRIED_MAX, 12_345):
        read(shapes, message)
    for number in range(LATER_EACH):
        read(shapes, flights(*range(number, number + 500)))
    assert shapes.known(flights(*range(500))) is not None


def test_the_number_of_shapes_of_one_size_is_bounded() -> None:
    def asked(number: int) -> list[bytes]:
        return [request({f"k{key:02}": pa.array([number], pa.int64())}) for key in range(3 * SAME_SIZE_MAX)]

    shapes = RequestShapes(parse)
    for message in asked(12_345):
        read(shapes, message)
    known = [shapes.known(message) is not None for message in asked(54_321)]
    assert known == [True] * SAME_SIZE_MAX + [False] * 2 * SAME_SIZE_MAX
