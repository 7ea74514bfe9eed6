"""The client for asyncio: the calls, retries and replies of `client`, awaited."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

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


class AsyncFeatureClient:
    """Looks features up at `host:port`. Make it in the event loop that uses it; close it, or use `async with`.

    The parameters are those of FeatureClient. Cancelling the task that awaits a call cancels the call.
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
            grpc.aio.insecure_channel(target, options)
            if tls is None
            else grpc.aio.secure_channel(target, tls.credentials(), options)
        )
        self._methods = {
            method: self._channel.unary_unary(method.path, response_deserializer=method.parse)
            for method in calls.METHODS
        }

    async def get_online_features(
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
        """As FeatureClient.get_online_features."""
        call = calls.lookup(service, keys, request, max_age, format, full_feature_names)
        return await self._answer(call, self._retries, timeout_s, metadata)

    async def describe_service(
        self, service: str | Sequence[str], *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> ServiceDescription:
        """As FeatureClient.describe_service."""
        return await self._answer(calls.describe(service), self._retries, timeout_s, metadata)

    async def predict(
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
        """As FeatureClient.predict."""
        call = predict(service, model, keys, request, max_age, version, outputs, on_missing)
        return await self._answer(call, self._retries, timeout_s, metadata)

    async def push(
        self, view: str, columns: Mapping[str, Any], *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> PushReply:
        """As FeatureClient.push."""
        return await self._answer(calls.push(view, columns), self._retries, timeout_s, metadata)

    async def get_freshness(
        self, service: str = "", *, views: Sequence[str] = (), timeout_s: float | None = None, metadata: Metadata = ()
    ) -> FreshnessReport:
        """As FeatureClient.get_freshness."""
        return await self._answer(calls.freshness(service, views), self._retries, timeout_s, metadata)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """As FeatureClient.wait_until_ready."""
        patient = Retries(attempts_max=sys.maxsize, backoff_max_s=0.2)
        await self._answer(calls.IS_READY, patient, timeout_s, ())

    async def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncFeatureClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(
        self, call: calls.Call[Answer], retries: Retries, timeout_s: float | None, metadata: Metadata
    ) -> Answer:
        method, sent = self._methods[call.method], (*self._metadata, *metadata, *authorization(self._token))
        attempts = Attempts(retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return call.read(await method(call.message, timeout=attempts.remaining_s(), metadata=sent))
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(request_failed(error))
            except RequestFailed as failure:
                pause_s = attempts.pause_s(failure)
            await asyncio.sleep(pause_s)
