"""A strange server's reply is an error of ours, or values that fit its rows; never another exception, nor a crash.

Replies of every kind are changed field by field: what is changed still parses, so it reaches what reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from featurestore.arrow_types import arrow_type
from featurestore_client import MalformedReply, OnlineReply, PredictReply, calls
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.columns import column_writer, encode_type
from tests.unit.serving.world import EVERY_TYPE

ROWS = 4


def columns() -> list[pb.Column]:
    """One of every type."""
    written = []
    for field, values in EVERY_TYPE:
        column = pb.Column(name=field.name, type=encode_type(field.dtype))
        column_writer(field.dtype)(column, pa.array((values * ROWS)[:ROWS], arrow_type(field.dtype)))
        written.append(column)
    return written


def view() -> pb.ViewResult:
    return pb.ViewResult(view="v@1", statuses=b"\x01\x02\x03\x05", event_timestamps=bytes(8 * ROWS))


def offsets(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def ipc() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": [1, 2, 3, 4], "y": ["a", None, "c", "d"]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def use_reply(message: Any) -> None:
    """Everything that a reply tells, as far as it is of the format that was asked for."""
    reply = OnlineReply(message)
    uses: list[Callable[[], object]] = [
        lambda: reply.statuses,
        lambda: reply.stale_reasons,
        lambda: reply.event_timestamps,
        lambda: reply.names,
    ]
    if message.HasField("matrix"):
        uses.append(reply.to_matrix)
    elif message.arrow_ipc:
        uses.append(reply.to_arrow)
    else:
        uses += [reply.to_numpy, reply.validity, reply.to_arrow]
        uses.append(lambda: reply.to_dict(statuses=True, event_timestamps=True))
    for use in uses:
        try:
            found = use()
        except MalformedReply:
            continue
        if use == reply.to_numpy:
            assert isinstance(found, dict)
            assert {len(values) for values in found.values()} <= {len(reply)}


def use_prediction(message: Any) -> None:
    reply = PredictReply(message)
    for use in (lambda: reply.outputs, lambda: reply.statuses, lambda: reply.event_timestamps):
        with contextlib.suppress(MalformedReply):
            use()


def read_by(call: calls.Call[Any]) -> Callable[[Any], None]:
    def use(message: Any) -> None:
        with contextlib.suppress(MalformedReply):
            call.read(message)

    return use


DESCRIBED = pb.DescribeServiceResponse(
    service="s",
    columns=[pb.FieldDescription(name="x", type=encode_type(field.dtype)) for field, _ in EVERY_TYPE],
    views=[pb.ViewDescription(view="v@1", ttl_us=1)],
    on_stale=pb.ON_STALE_NULL,
)
JUDGED = pb.GetFreshnessResponse(
    views=[pb.ViewFreshness(view="v@1", verdict=pb.FRESHNESS_VERDICT_HOLDS, age_us=1, watermark_us=1)], judged_at_us=5
)
TENSORS = [
    pb.Tensor(name="a", datatype="FP32", shape=[ROWS, 2], values=bytes(8 * ROWS)),
    pb.Tensor(name="b", datatype="BYTES", shape=[ROWS], values=b"\x01\0\0\0x" * ROWS),
]
KINDS: dict[str, tuple[Message, Callable[[Any], None]]] = {
    "columns": (pb.GetOnlineFeaturesResponse(rows=ROWS, columns=columns(), views=[view()]), use_reply),
    "matrix": (
        pb.GetOnlineFeaturesResponse(rows=ROWS, matrix=pb.Matrix(names=["x"], values=bytes(4 * ROWS)), views=[view()]),
        use_reply,
    ),
    "arrow": (pb.GetOnlineFeaturesResponse(rows=ROWS, arrow_ipc=ipc(), views=[view()]), use_reply),
    "prediction": (pb.PredictResponse(rows=ROWS, outputs=TENSORS, views=[view()]), use_prediction),
    "description": (DESCRIBED, read_by(calls.describe("s"))),
    "freshness": (JUDGED, read_by(calls.freshness("s", ()))),
    "push": (
        pb.PushResponse(view="v@1", statuses=b"\x01", rejections=[pb.PushRejection(row=1)]),
        read_by(calls.push("v", {})),
    ),
}
NUMBERS = st.sampled_from([0, 1, 2, ROWS - 1, ROWS + 1, 9, 77, 2**31 - 1]) | st.integers(-(2**63), 2**63 - 1)
BOUNDS = {1: (-(2**31), 2**31 - 1), 2: (-(2**63), 2**63 - 1), 3: (0, 2**32 - 1), 4: (0, 2**64 - 1), 8: (0, 2**31 - 1)}


def change(data: st.DataObject, message: Any) -> None:
    """Change one field of a message, or of one within it."""
    fields = message.DESCRIPTOR.fields_by_name
    field = fields[data.draw(st.sampled_from(sorted(fields)))]
    value = getattr(message, field.name)
    if field.is_repeated:
        if not value:
            return
        place = data.draw(st.integers(0, len(value) - 1))
        if field.message_type is not None and data.draw(st.integers(0, 4)):
            change(data, value[place])
        elif data.draw(st.booleans()):
            del value[place]
        else:
            value.append(value[place])
    elif field.message_type is not None:
        change(data, value)
    else:
        setattr(message, field.name, changed(data, field.cpp_type, value))


def changed(data: st.DataObject, kind: int, value: Any) -> Any:
    """Another value of the type."""
    if isinstance(value, bytes):
        start, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(value))])))
        return value[:start] + data.draw(st.binary(max_size=9)) + value[end:]
    if isinstance(value, str):
        return data.draw(st.text(max_size=5))
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return data.draw(st.floats())
    least, most = BOUNDS[kind]
    return min(max(data.draw(NUMBERS), least), most)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_changed_reply_is_read_or_malformed(kind: str, data: st.DataObject) -> None:
    whole, use = KINDS[kind]
    message = type(whole).FromString(whole.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        change(data, message)
    use(message)


def test_a_whole_reply_of_every_type_is_read() -> None:
    reply = OnlineReply(KINDS["columns"][0])  # type: ignore[arg-type]
    assert {len(values) for values in reply.to_numpy().values()} == {ROWS}
    assert reply.to_arrow().num_rows == ROWS
    assert len(reply.to_dict(statuses=True, event_timestamps=True)["v__status"]) == ROWS


INT64, LIST, VECTOR = pb.TYPE_KIND_INT64, pb.TYPE_KIND_LIST, pb.TYPE_KIND_VECTOR
NUMBER = pb.DataType(kind=INT64)


@pytest.mark.parametrize(
    "column",
    [
        pb.Column(type=NUMBER, rows=2, values=bytes(8)),
        pb.Column(type=NUMBER, rows=3, values=bytes(24)),
        pb.Column(type=pb.DataType(kind=VECTOR, element=NUMBER, length=3), rows=2, values=bytes(40)),
        pb.Column(type=pb.DataType(kind=LIST, element=NUMBER), rows=2, values=bytes(8), offsets=offsets(0, 1)),
        pb.Column(type=pb.DataType(kind=LIST, element=NUMBER), rows=2, values=bytes(8), offsets=offsets(0, 1, 2)),
        pb.Column(type=pb.DataType(kind=LIST, element=NUMBER), rows=2, values=bytes(8), offsets=offsets(0, -1, 1)),
        pb.Column(type=pb.DataType(kind=pb.TYPE_KIND_BYTES), rows=1 << 31, values=b"", offsets=offsets(0)),
        pb.Column(type=pb.DataType(kind=77), rows=2, values=bytes(16)),  # type: ignore[arg-type]
    ],
    ids=["short", "of other rows", "vectors", "lists", "elements", "falling", "endless", "unknown"],
)
def test_a_column_that_does_not_fit_is_a_malformed_reply(column: pb.Column) -> None:
    rows = column.rows if column.rows > 3 else 2
    with pytest.raises(MalformedReply, match=r"cannot be read .*update this client"):
        OnlineReply(pb.GetOnlineFeaturesResponse(rows=rows, columns=[column])).to_numpy()
