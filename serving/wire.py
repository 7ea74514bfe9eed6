"""Requests and replies as protobuf and back; beside the client, the only module that knows the messages.

A column is copied buffer by buffer, so the work is per column. Whatever arrives is checked before Arrow may follow
an offset in it: malformed bytes are an InputError, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
from google.protobuf.message import DecodeError

from featurestore.errors import InputError
from featurestore.ingest.push import PushResult
from featurestore.outputs import Output
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.columns import decode_column, encode_type
from serving.plan import ServicePlan
from serving.reply_columns import ReplyColumns
from serving.reply_verdicts import ReplyVerdicts
from serving.response import OnlineResponse

Message = TypeVar("Message", pb.GetOnlineFeaturesRequest, pb.DescribeServiceRequest, pb.PushRequest, pb.PredictRequest)

_REPLY_FORMATS = frozenset(pb.ReplyFormat.values())
_ON_STALE = {"serve": pb.ON_STALE_SERVE, "null": pb.ON_STALE_NULL, "fail": pb.ON_STALE_FAIL}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; a request past a limit is refused before it costs anything."""

    #: Keys in one call. A reply of 10,000 rows x 500 float32 features is 20 MB and takes some 50 ms to make.
    rows_max: int = 10_000
    #: Features named one by one.
    features_max: int = 1_000
    #: Bytes of a request or reply message.
    message_bytes_max: int = 64 << 20

    def check_rows(self, rows: int, what: str, name: str) -> None:
        """InputError when a column of that name, a `what`, has too many rows."""
        if rows > self.rows_max:
            raise InputError(
                f"{what} {name!r} has {rows} rows, at most {self.rows_max} fit one request; split it into several"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureChoice:
    """Which features are asked for: a service, or a list."""

    service: str = ""
    features: tuple[str, ...] = ()
    full_names: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class LookupRequest:
    """A decoded GetOnlineFeaturesRequest."""

    choice: FeatureChoice
    keys: dict[str, pa.Array] = field(default_factory=dict)
    request: dict[str, pa.Array] = field(default_factory=dict)
    max_age: timedelta | None = None
    reply_format: int = pb.REPLY_FORMAT_COLUMNS


# ---------------------------------------------------------------- requests


def decode_lookup(message: bytes, limits: Limits) -> LookupRequest:
    """A GetOnlineFeaturesRequest; InputError for malformed bytes and for what is past a limit."""
    asked = parsed(pb.GetOnlineFeaturesRequest, message)
    if asked.reply_format not in _REPLY_FORMATS:
        raise InputError(f"reply_format {asked.reply_format} is not known; known: {', '.join(pb.ReplyFormat.keys())}")
    return LookupRequest(
        choice=_choice(asked, limits, asked.full_feature_names),
        keys=decode_columns(asked.keys, "join key", limits),
        request=decode_columns(asked.request_fields, "request field", limits),
        max_age=timedelta(microseconds=asked.max_age_us) if asked.HasField("max_age_us") else None,
        reply_format=asked.reply_format or pb.REPLY_FORMAT_COLUMNS,
    )


def decode_describe(message: bytes, limits: Limits) -> FeatureChoice:
    """A DescribeServiceRequest."""
    return _choice(parsed(pb.DescribeServiceRequest, message), limits, False)


def decode_push(message: bytes, limits: Limits) -> tuple[str, dict[str, pa.Array]]:
    """(view, columns) of a PushRequest."""
    asked = parsed(pb.PushRequest, message)
    if not asked.view:
        raise InputError("the request names no view; set the feature view that the rows belong to")
    return asked.view, decode_columns(asked.columns, "column", limits)


def parsed(kind: type[Message], message: bytes) -> Message:
    """The message that the bytes are; InputError when they are not."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InputError(f"the request is not a {kind.DESCRIPTOR.name}: {error}") from error


def _choice(
    asked: pb.GetOnlineFeaturesRequest | pb.DescribeServiceRequest, limits: Limits, full_names: bool
) -> FeatureChoice:
    if asked.WhichOneof("features") is None:
        raise InputError("the request names neither a service nor features; set one of them")
    return feature_choice(asked.service, tuple(asked.feature_list.features), full_names, limits)


def feature_choice(service: str, features: tuple[str, ...], full_names: bool, limits: Limits) -> FeatureChoice:
    """The choice that a request names; InputError when it names nothing, or too much."""
    if len(features) > limits.features_max:
        raise InputError(f"{len(features)} features are asked for, at most {limits.features_max} fit one request")
    if not features and not service:
        raise InputError("the name of the service is empty, and no features are named; name a service, or features")
    return FeatureChoice(service=service, features=features, full_names=full_names)


def decode_columns(columns: Iterable[pb.Column], what: str, limits: Limits) -> dict[str, pa.Array]:
    """Name -> column; InputError naming `what` for one that is malformed, given twice, or past a limit."""
    decoded: dict[str, pa.Array] = {}
    for column in columns:
        name = column.name
        limits.check_rows(column.rows, what, name)
        if name in decoded:
            raise InputError(f"{what} {name!r} is given twice; give each column once")
        values = decode_column(column, what)
        # Who writes a column without a value cannot know its type, and it fits every one.
        decoded[name] = pa.nulls(len(values)) if values.null_count == len(values) else values
    return decoded


# ---------------------------------------------------------------- replies


class ReplyEncoder:
    """Writes replies of one plan, in pieces: what is the same in every reply is made once."""

    def __init__(self, plan: ServicePlan) -> None:
        self._plan = plan
        self._columns, self._verdicts = ReplyColumns(plan), ReplyVerdicts(plan)
        self._formats: dict[int, Callable[[OnlineResponse], list[bytes | memoryview]]] = {
            pb.REPLY_FORMAT_COLUMNS: self._with_columns,
            pb.REPLY_FORMAT_MATRIX: self._with_matrix,
            pb.REPLY_FORMAT_ARROW_IPC: _with_arrow_ipc,
        }

    def encode(self, response: OnlineResponse, reply_format: int) -> bytes:
        """A GetOnlineFeaturesResponse; InputError where the format cannot hold the features."""
        return b"".join([*self._formats[reply_format](response), *self._verdicts.pieces(response)])

    def _with_columns(self, response: OnlineResponse) -> list[bytes | memoryview]:
        return self._columns.pieces(response)

    def _with_matrix(self, response: OnlineResponse) -> list[bytes | memoryview]:
        values = pb.GetOnlineFeaturesResponse(matrix=pb.Matrix(values=response.to_matrix().tobytes()))
        return [self._matrix_names, values.SerializeToString()]

    @cached_property
    def _matrix_names(self) -> bytes:
        """The matrix without its values: pieces of one message are merged by whoever reads them."""
        return pb.GetOnlineFeaturesResponse(matrix=pb.Matrix(names=self._plan.matrix.names)).SerializeToString()


def _with_arrow_ipc(response: OnlineResponse) -> list[bytes | memoryview]:
    table = response.to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return [pb.GetOnlineFeaturesResponse(arrow_ipc=sink.getvalue().to_pybytes()).SerializeToString()]


def encode_description(plan: ServicePlan, revision: int) -> bytes:
    """A DescribeServiceResponse."""
    reply = pb.DescribeServiceResponse(
        service=plan.name,
        on_stale=_ON_STALE[plan.service.on_stale],
        description=plan.service.description,
        matrix_refusal=_matrix_refusal(plan),
        signature=plan.signature if plan.name else "",
        registry_revision=revision,
    )
    for name, dtype in plan.join_keys.items():
        views = [view.ref for view in plan.views if name in view.join_keys]
        reply.join_keys.add(name=name, type=encode_type(dtype), views=views)
    reply.request_fields.extend(_field(output) for output in plan.outputs if not output.view)
    reply.columns.extend(_field(output) for output in plan.outputs)
    for view in plan.views:
        reply.views.add(view=view.ref, ttl_us=view.ttl_us, freshness_us=view.freshness_us)
    return reply.SerializeToString()


def encode_push(result: PushResult) -> bytes:
    """A PushResponse."""
    refused = result.rejections
    reply = pb.PushResponse(view=result.view, statuses=result.results.tobytes(), pending_reason=result.pending_reason)
    for row, field_name, rule, reason, value in refused.listed(len(refused)):
        reply.rejections.add(row=row, field=field_name, rule=rule, reason=reason, value=value)
    return reply.SerializeToString()


def _field(output: Output) -> pb.FieldDescription:
    return pb.FieldDescription(
        name=output.name,
        type=encode_type(output.field.dtype),
        nullable=output.field.nullable,
        view=output.view,
        field=output.field.name,
        fill=output.fill,
        description=output.field.description,
    )


def _matrix_refusal(plan: ServicePlan) -> str:
    try:
        _ = plan.matrix
        return ""
    except InputError as error:
        return str(error)
