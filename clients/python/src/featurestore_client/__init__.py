"""Looks features up in a featurestore server: one call for many entities, replies as numpy columns.

Needs grpcio, protobuf and numpy; pyarrow (extra `arrow`) only where Arrow is handed in or asked for.
"""

from featurestore_client.access import Tls
from featurestore_client.aio import AsyncFeatureClient
from featurestore_client.client import FeatureClient
from featurestore_client.description import FieldDescription, JoinKey, ServiceDescription, ViewDescription
from featurestore_client.errors import (
    BadRequest,
    DeadlineExceeded,
    MalformedReply,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    RequestFailed,
    Unauthenticated,
    Unavailable,
)
from featurestore_client.freshness import FreshnessReport, ViewFreshness
from featurestore_client.predicting import PredictReply
from featurestore_client.pushing import PushRejection, PushReply, PushStatus
from featurestore_client.reply import OnlineReply
from featurestore_client.retries import Retries
from featurestore_client.verdicts import StaleReason, Status

__all__ = [
    "AsyncFeatureClient",
    "BadRequest",
    "DeadlineExceeded",
    "FeatureClient",
    "FieldDescription",
    "FreshnessReport",
    "JoinKey",
    "MalformedReply",
    "NotFound",
    "OnlineReply",
    "Overloaded",
    "PermissionDenied",
    "PredictReply",
    "PushRejection",
    "PushReply",
    "PushStatus",
    "Refused",
    "RequestFailed",
    "Retries",
    "ServiceDescription",
    "StaleReason",
    "Status",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "ViewDescription",
    "ViewFreshness",
]
