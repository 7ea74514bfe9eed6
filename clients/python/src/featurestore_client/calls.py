"""The calls as messages with what reads their answers: all that the sync and the async client share but retries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import grpc

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from featurestore_client.description import ServiceDescription
from featurestore_client.errors import Unavailable, understood
from featurestore_client.freshness import FreshnessReport
from featurestore_client.pushing import PushReply
from featurestore_client.reply import OnlineReply

Answer = TypeVar("Answer")
Metadata = Sequence[tuple[str, str | bytes]]
ReplyFormat = Literal["columns", "matrix", "arrow"]

TIMEOUT_S = 5.0
MESSAGE_BYTES_MAX = 64 << 20

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Retries are ours: gRPC's own stop at 5 attempts, and hide the reason behind DEADLINE_EXCEEDED.
    ("grpc.enable_retries", 0),
    # A server that restarts is back within a second; gRPC would look for it after 1, then 2, 4, ... 120 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A peer that vanished without a word is noticed by a call in flight, not only after TCP gives up.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

_SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"]
_FORMATS = {
    "columns": pb.REPLY_FORMAT_COLUMNS,
    "matrix": pb.REPLY_FORMAT_MATRIX,
    "arrow": pb.REPLY_FORMAT_ARROW_IPC,
}


@dataclass(frozen=True)
class Method:
    """A unary method: its path, and the reply as a message."""

    path: str
    parse: Callable[[bytes], Any]


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request that may be repeated without harm, and what reads its reply: it may raise RequestFailed as well."""

    method: Method
    message: bytes
    read: Callable[[Any], Answer]


LOOKUP = Method(f"/{_SERVICE.full_name}/GetOnlineFeatures", pb.GetOnlineFeaturesResponse.FromString)
FRESHNESS = Method(f"/{_SERVICE.full_name}/GetFreshness", pb.GetFreshnessResponse.FromString)
PUSH = Method(f"/{_SERVICE.full_name}/Push", pb.PushResponse.FromString)
PREDICT = Method(f"/{_SERVICE.full_name}/Predict", pb.PredictResponse.FromString)
DESCRIBE = Method(f"/{_SERVICE.full_name}/DescribeService", pb.DescribeServiceResponse.FromString)
#: grpc.health.v1 by its two bytes, so that its generated code need not be installed.
HEALTH = Method("/grpc.health.v1.Health/Check", bytes)
METHODS = (LOOKUP, PUSH, PREDICT, DESCRIBE, FRESHNESS, HEALTH)
_SERVING = b"\x08\x01"


def lookup(
    service: str | Sequence[str],
    keys: Mapping[str, Any],
    request: Mapping[str, Any] | None,
    max_age: timedelta | None,
    format: ReplyFormat,
    full_feature_names: bool,
) -> Call[OnlineReply]:
    """GetOnlineFeatures; TypeError names a column that cannot travel."""
    if format not in _FORMATS:
        raise ValueError(f"format {format!r} is not known; known: {', '.join(_FORMATS)}")
    asked = pb.GetOnlineFeaturesRequest(
        keys=[encode_column(name, values) for name, values in keys.items()],
        request_fields=[encode_column(name, values) for name, values in (request or {}).items()],
        reply_format=_FORMATS[format],
        full_feature_names=full_feature_names,
    )
    if max_age is not None:
        asked.max_age_us = max_age // timedelta(microseconds=1)
    _choose(asked, service)
    return Call(LOOKUP, asked.SerializeToString(), partial(OnlineReply, keys=asked.keys))


def describe(service: str | Sequence[str]) -> Call[ServiceDescription]:
    """DescribeService."""
    asked = pb.DescribeServiceRequest()
    _choose(asked, service)
    return Call(DESCRIBE, asked.SerializeToString(), understood(ServiceDescription.from_message))


def push(view: str, columns: Mapping[str, Any]) -> Call[PushReply]:
    """Push; TypeError names a column that cannot travel."""
    asked = pb.PushRequest(view=view, columns=[encode_column(name, values) for name, values in columns.items()])
    return Call(PUSH, asked.SerializeToString(), understood(PushReply.from_message))


def freshness(service: str, views: Sequence[str]) -> Call[FreshnessReport]:
    """GetFreshness."""
    asked = pb.GetFreshnessRequest(service=service, views=views)
    return Call(FRESHNESS, asked.SerializeToString(), understood(FreshnessReport.from_message))


def _choose(message: pb.GetOnlineFeaturesRequest | pb.DescribeServiceRequest, service: str | Sequence[str]) -> None:
    if isinstance(service, str):
        message.service = service
    else:
        message.feature_list.features.extend(service)


def _ready(reply: bytes) -> None:
    if not reply.startswith(_SERVING):
        raise Unavailable(grpc.StatusCode.UNAVAILABLE, "the server is up, and not ready")


IS_READY: Call[None] = Call(HEALTH, b"", _ready)
