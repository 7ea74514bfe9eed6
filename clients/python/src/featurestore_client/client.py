"""The client for threads: one channel, kept open, for all calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import grpc

from featurestore_client import calls
from featurestore_client.access import Tls, Token, authorization, require_private
from featurestore_client.calls import Answer, Metadata, ReplyFormat
from featurestore_client.description import ServiceDescription
from featurestore_client.errors import RequestFailed, request_failed
from featurestore_client.freshness import FreshnessReport
from featurestore_client.predicting import OnMissing, PredictReply, predict
from featurestore_client.pushing import PushReply
from featurestore_client.reply import OnlineReply
from featurestore_client.retries import Attempts, Retries


class FeatureClient:
    """Looks features up at `host:port`. Threads may share it; close it, or use it in a `with` block.

    Calls are reads, or pushes that change nothing the second time, so they are repeated while the server is away or
    asks for patience, inside their `timeout_s`.
    Without `tls` it speaks plaintext. `token` is a bearer token, or is called before each request to give one; over
    plaintext it goes to this machine only, unless `allow_plaintext_token` (ValueError). `metadata` goes with each call.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = calls.TIMEOUT_S,
        retries: Retries | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
        allow_plaintext_token: bool = False,
        metadata: Metadata = (),
    ) -> None:
        require_private(target, token, tls, allow_plaintext_token=allow_plaintext_token)
        self._timeout_s, self._retries = timeout_s, retries or Retries()
        self._token, self._metadata = token, tuple(metadata)
        options = calls.CHANNEL_OPTIONS
        self._channel = (
            grpc.insecure_channel(target, options)
            if tls is None
            else grpc.secure_channel(target, tls.credentials(), options)
        )
        self._methods = {
            method: self._channel.unary_unary(method.path, response_deserializer=method.parse)
            for method in calls.METHODS
        }

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
        metadata: Metadata = (),
    ) -> OnlineReply:
        """The features of the entities in `keys` (name -> column), a row each, in their order.

        `service` is a service's name, or features as `view:field`. Columns are Arrow arrays, numpy arrays or Python
        sequences, `request` holds those of the request fields. Rows older than `max_age` are STALE. RequestFailed, or
        one of its kinds, carries the server's code and words; `timeout_s` bounds the call with its retries.
        """
        call = calls.lookup(service, keys, request, max_age, format, full_feature_names)
        return self._answer(call, self._retries, timeout_s, metadata)

    def describe_service(
        self, service: str | Sequence[str], *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> ServiceDescription:
        """What the service, or a list of features, takes and gives."""
        return self._answer(calls.describe(service), self._retries, timeout_s, metadata)

    def predict(
        self,
        service: str,
        model: str,
        keys: Mapping[str, Any],
        *,
        request: Mapping[str, Any] | None = None,
        max_age: timedelta | None = None,
        version: str = "",
        outputs: Sequence[str] = (),
        on_missing: OnMissing = "fill",
        timeout_s: float | None = None,
        metadata: Metadata = (),
    ) -> PredictReply:
        """What a model says of the entities in `keys`, from their features in `service`, whose model it must be.

        `version` and `outputs` default to what the model's server chooses, and to all. `on_missing="fail"` refuses rows
        without features; else the model sees their fills. The others are those of `get_online_features`.
        """
        call = predict(service, model, keys, request, max_age, version, outputs, on_missing)
        return self._answer(call, self._retries, timeout_s, metadata)

    def push(
        self, view: str, columns: Mapping[str, Any], *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> PushReply:
        """Push rows to a view: name -> column, named as in its source; Arrow, numpy or Python sequences.

        Safe to repeat, and repeated when the server is away for a moment: rows taken before are duplicates.
        """
        return self._answer(calls.push(view, columns), self._retries, timeout_s, metadata)

    def get_freshness(
        self, service: str = "", *, views: Sequence[str] = (), timeout_s: float | None = None, metadata: Metadata = ()
    ) -> FreshnessReport:
        """How old the published data is against what is promised: of a service's views, of those named, or of all."""
        return self._answer(calls.freshness(service, views), self._retries, timeout_s, metadata)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once the server says that it serves; the last failure (Unavailable, mostly) when the time is up."""
        patient = Retries(attempts_max=sys.maxsize, backoff_max_s=0.2)
        self._answer(calls.IS_READY, patient, timeout_s, ())

    def close(self) -> None:
        """Close the channel; calls that still run end as cancelled."""
        self._channel.close()

    def __enter__(self) -> FeatureClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, call: calls.Call[Answer], retries: Retries, timeout_s: float | None, metadata: Metadata
    ) -> Answer:
        method, sent = self._methods[call.method], (*self._metadata, *metadata, *authorization(self._token))
        attempts = Attempts(retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return call.read(method(call.message, timeout=attempts.remaining_s(), metadata=sent))
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(request_failed(error))
            except RequestFailed as failure:
                pause_s = attempts.pause_s(failure)
            time.sleep(pause_s)
