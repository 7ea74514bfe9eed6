"""A small synchronous client: one channel, kept open, and replies as numpy columns.

Needs grpc, protobuf and numpy; pyarrow only where Arrow is asked for or handed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import grpc
import numpy as np
from numpy.typing import NDArray

from serving._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving._pb.featurestore.serving.v1 import serving_pb2_grpc
from serving.client_columns import encode_column, numpy_values, valid_mask

if TYPE_CHECKING:
    import pyarrow as pa

ReplyFormat = Literal["columns", "matrix", "arrow"]

_FORMATS = {
    "columns": pb.REPLY_FORMAT_COLUMNS,
    "matrix": pb.REPLY_FORMAT_MATRIX,
    "arrow": pb.REPLY_FORMAT_ARROW_IPC,
}
TIMEOUT_S = 5.0
MESSAGE_BYTES_MAX = 64 << 20

#: A server that drains or a store away for a moment is asked again, inside the deadline; reads are safe to repeat.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "featurestore.serving.v1.FeatureServing"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class RequestFailed(Exception):
    """The server refused or could not answer; `code` is the gRPC code, `request_id` what its log calls the request."""

    def __init__(self, code: grpc.StatusCode, message: str, request_id: str) -> None:
        self.code, self.message, self.request_id = code, message, request_id
        super().__init__(f"{code.name}: {message}")

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class ClientResponse:
    """A reply; columns are decoded when asked for."""

    def __init__(self, reply: pb.GetOnlineFeaturesResponse) -> None:
        self.message = reply

    def __len__(self) -> int:
        return self.message.rows

    @property
    def degraded_rows(self) -> int:
        """How many rows were STALE in some view."""
        return self.message.degraded_rows

    @property
    def served_at_us(self) -> int:
        """When the rows were judged, microseconds since the epoch."""
        return self.message.served_at_us

    @property
    def statuses(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a Status per row."""
        return {view.view: np.frombuffer(view.statuses, np.uint8) for view in self.message.views}

    @property
    def stale_reasons(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a StaleReason per row, 0 where it is not STALE."""
        none = bytes(len(self))
        return {view.view: np.frombuffer(view.stale_reasons or none, np.uint8) for view in self.message.views}

    @property
    def event_timestamps(self) -> dict[str, NDArray[np.datetime64]]:
        """name@version of a view -> when each row was true, UTC; 1970 where it was NOT_FOUND."""
        return {view.view: np.frombuffer(view.event_timestamps, "<M8[us]") for view in self.message.views}

    def numpy(self) -> dict[str, NDArray[Any]]:
        """Name -> values. Null is NaN in floats, NaT in times, None among objects; `valid` tells for the others."""
        return {column.name: numpy_values(column) for column in self._columns()}

    def valid(self) -> dict[str, NDArray[np.bool_]]:
        """Name -> True where there is a value."""
        masks = {column.name: valid_mask(column) for column in self._columns()}
        return {name: np.ones(len(self), np.bool_) if mask is None else mask for name, mask in masks.items()}

    def arrow(self) -> pa.Table:
        """The columns as an Arrow table; from a reply in "columns" or "arrow"."""
        import pyarrow as pa

        if self.message.arrow_ipc:
            return pa.ipc.open_stream(self.message.arrow_ipc).read_all()
        from serving.columns import decode_column

        columns = self._columns()
        return pa.table([decode_column(column, column.name) for column in columns], names=[c.name for c in columns])

    def to_matrix(self) -> NDArray[np.float32]:
        """The matrix, a row per key; only from a reply in "matrix", since the server knows the fills."""
        matrix = self.message.matrix
        if not self.message.HasField("matrix"):
            raise ValueError('the reply holds no matrix; ask with format="matrix"')
        return np.frombuffer(matrix.values, "<f4").reshape(len(self), len(matrix.names))

    @property
    def matrix_names(self) -> list[str]:
        """Names of the columns of the matrix."""
        return list(self.message.matrix.names)

    def _columns(self) -> Sequence[pb.Column]:
        if self.message.arrow_ipc or self.message.HasField("matrix"):
            raise ValueError('the reply holds no columns; ask with format="columns"')
        return self.message.columns


class PushReply:
    """What became of pushed rows."""

    def __init__(self, reply: pb.PushResponse) -> None:
        self.message = reply

    @property
    def view(self) -> str:
        """The view that the rows went to, name@version."""
        return str(self.message.view)

    @property
    def statuses(self) -> NDArray[np.uint8]:
        """The number of a PushStatus per row: 1 accepted, 2 duplicate, 3 correction, 4 pending, 5 rejected."""
        return np.frombuffer(self.message.statuses, np.uint8)

    @property
    def rejections(self) -> Sequence[pb.PushRejection]:
        """Row, field, rule, reason and value of each rejected row."""
        return self.message.rejections

    @property
    def pending_reason(self) -> str:
        """Why rows are pending; empty when none is."""
        return str(self.message.pending_reason)


class FeatureClient:
    """Looks features up at `host:port`. Threads may share it; close it, or use it in a `with` block."""

    def __init__(self, target: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.service_config", json.dumps(_RETRIES)),
            ],
        )
        self._stub = serving_pb2_grpc.FeatureServingStub(self._channel)

    def get_online_features(
        self,
        service: str | Sequence[str],
        keys: Mapping[str, Any],
        *,
        request: Mapping[str, Any] | None = None,
        max_age: timedelta | None = None,
        format: ReplyFormat = "columns",
        full_feature_names: bool = False,
        timeout_s: float | None = None,
    ) -> ClientResponse:
        """The features of the entities in `keys` (name -> column), a row each, in their order.

        `service` is a service's name, or features as `view:field`. Columns are Arrow arrays, numpy arrays or Python
        sequences. RequestFailed carries the server's code and words; `timeout_s` bounds the call with its retries.
        """
        asked = pb.GetOnlineFeaturesRequest(
            keys=[encode_column(name, values) for name, values in keys.items()],
            request_fields=[encode_column(name, values) for name, values in (request or {}).items()],
            reply_format=_FORMATS[format],
            full_feature_names=full_feature_names,
        )
        if max_age is not None:
            asked.max_age_us = max_age // timedelta(microseconds=1)
        _choose(asked, service)
        return ClientResponse(self._call(self._stub.GetOnlineFeatures, asked, timeout_s))

    def push(self, view: str, columns: Mapping[str, Any], *, timeout_s: float | None = None) -> PushReply:
        """Push rows to a view: name -> column, named as in its source; Arrow, numpy or Python sequences.

        Safe to repeat, and repeated when the server is away for a moment: rows taken before are duplicates.
        """
        asked = pb.PushRequest(view=view, columns=[encode_column(name, values) for name, values in columns.items()])
        return PushReply(self._call(self._stub.Push, asked, timeout_s))

    def describe_service(
        self, service: str | Sequence[str], *, timeout_s: float | None = None
    ) -> pb.DescribeServiceResponse:
        """What the service, or a list of features, takes and gives."""
        asked = pb.DescribeServiceRequest()
        _choose(asked, service)
        reply: pb.DescribeServiceResponse = self._call(self._stub.DescribeService, asked, timeout_s)
        return reply

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> FeatureClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, message: Any, timeout_s: float | None) -> Any:
        try:
            return method(message, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            _raise(error)


def _choose(message: pb.GetOnlineFeaturesRequest | pb.DescribeServiceRequest, service: str | Sequence[str]) -> None:
    if isinstance(service, str):
        message.service = service
    else:
        message.feature_list.features.extend(service)


def _raise(error: grpc.RpcError) -> NoReturn:
    assert isinstance(error, grpc.Call)
    metadata = dict(error.trailing_metadata() or ())
    request_id = metadata.get("x-request-id", "")
    raise RequestFailed(error.code(), error.details() or "", str(request_id)) from error
