"""Predict: keys to features to matrix to model. A model never sees features that it was not trained on.

The matrix is the one of training (`featurestore.matrix`). Before a model is fed, its signature is compared with the
service's; our sidecar compares once more, in the version that answers, so that no switch in between is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from featurestore.errors import InputError, ModelFailed, ServingError, StoreUnreachable
from featurestore.model_signature import misfit
from featurestore.status import Status
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import Principal
from serving.circuit import CircuitState
from serving.engine import Engine
from serving.inference._pb.inference import open_inference_pb2 as inference
from serving.observing import Stage, mark
from serving.plan import ServicePlan
from serving.reply_verdicts import view_results
from serving.response import OnlineResponse
from serving.sidecar import SIGNATURE, ModelDescription, Sidecar, SidecarAccess, infer_request, raw_outputs
from serving.wire import FeatureChoice, Limits, LookupRequest, decode_columns, parsed

#: How long what a model says of itself is believed; our sidecar looks at signatures in every call.
DESCRIBED_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which features, for which model."""

    lookup: LookupRequest
    model: str
    #: Empty for the one that the sidecar chooses.
    version: str = ""
    #: None for all that the model gives.
    outputs: Sequence[str] = ()
    #: Whether rows that are NOT_FOUND or EXPIRED in some view fail the call; otherwise the model sees their fills.
    fail_on_missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says, and the features that it rests on: each output has a row for each of theirs."""

    features: OnlineResponse
    model: str
    version: str
    #: (name, datatype, shape, bytes) of each.
    outputs: tuple[tuple[str, str, tuple[int, ...], bytes], ...]


class Predictor:
    """Answers questions with the features of an engine and the models of a sidecar."""

    def __init__(self, engine: Engine, sidecar: Sidecar, limits: Limits) -> None:
        self._engine, self._sidecar, self._limits = engine, sidecar, limits
        #: (model, version asked for) -> what it is, and until when that is believed.
        self._described: dict[tuple[str, str], tuple[ModelDescription, float]] = {}

    @property
    def sidecar_state(self) -> CircuitState:
        """Whether requests reach the sidecar."""
        return self._sidecar.state

    async def predict(self, message: bytes, principal: Principal, threads: Executor | None = None) -> bytes:
        """A PredictResponse for a PredictRequest of this principal."""
        mark(Stage.QUEUE)
        asked = _question(parsed(pb.PredictRequest, message), self._limits)
        principal.require_read(asked.lookup.choice.service)
        answer = await self.answer(asked, threads)
        encoded = _encode(answer)
        mark(Stage.ENCODE)
        self._engine.sent(answer.features)
        return encoded

    async def answer(self, asked: Question, threads: Executor | None = None) -> Answer:
        """What the model says. Who asks must have been let in, and the engine must be told when it was sent."""
        _, response = await self._engine.respond(asked.lookup, threads)
        _require_known(response, fail_on_missing=asked.fail_on_missing)
        matrix = response.to_matrix()
        mark(Stage.DECODE)
        model = await self._fit(asked, response.plan)
        reply = await self._infer(asked, model, response.plan, matrix)
        mark(Stage.MODEL)
        return _answer(response, reply)

    async def _infer(
        self, asked: Question, model: ModelDescription, plan: ServicePlan, matrix: np.ndarray
    ) -> inference.ModelInferResponse:
        if unknown := [name for name in asked.outputs if name not in model.outputs]:
            raise InputError(
                f"model {asked.model!r} gives no output {', '.join(map(repr, unknown))}; it gives: "
                f"{', '.join(model.outputs)}"
            )
        request = infer_request(
            asked.model, asked.version, model.inputs[0][0], matrix.shape, matrix.tobytes(), asked.outputs
        )
        if model.signature is not None:
            request.parameters[SIGNATURE].string_param = plan.signature
        try:
            reply = await self._sidecar.infer(request)
        except ServingError:
            # Perhaps the model is another one by now; the next request asks what it is.
            self._described.pop((asked.model, asked.version), None)
            raise
        if reply.model_version != model.version and model.signature is None and asked.version == "":
            # A server that looks at no signature answered with a version that we have not seen.
            self._require_fit(asked.model, await self._sidecar.describe(asked.model, reply.model_version), plan)
        return reply

    async def _fit(self, asked: Question, plan: ServicePlan) -> ModelDescription:
        """What the model is; ServingError when it was not trained on this service."""
        key, now_s = (asked.model, asked.version), asyncio.get_running_loop().time()
        described, until_s = self._described.get(key, (None, 0.0))
        if described is None or until_s < now_s:
            described = await self._sidecar.describe(*key)
            self._described[key] = described, now_s + DESCRIBED_S
        try:
            self._require_fit(asked.model, described, plan)
        except ServingError:
            del self._described[key]
            raise
        return described

    def _require_fit(self, name: str, model: ModelDescription, plan: ServicePlan) -> None:
        if model.signature is not None:
            if model.signature.get("signature") != plan.signature:
                views = self._engine.catalog.views
                raise ServingError(misfit(name, model.signature, plan.service, views) or "its signature is another")
        elif not self._sidecar.access.unsigned:
            raise ServingError(
                f"model {name!r} has no signature that says what it was trained on; put signature.json beside it, or "
                "set inference.unsigned = true to feed it all the same"
            )
        width = plan.matrix.width
        taken = [f"{name} {datatype} {list(shape)}" for name, datatype, shape in model.inputs]
        if len(model.inputs) != 1 or model.inputs[0][1] != "FP32" or model.inputs[0][2][1:] not in ((width,), (-1,)):
            raise ServingError(
                f"model {name!r} takes {', '.join(taken)}, {plan.owner} gives one FP32 [-1, {width}]; "
                "export it with one matrix as its input"
            )


@asynccontextmanager
async def predicting(engine: Engine, access: SidecarAccess | None, limits: Limits) -> AsyncIterator[Predictor | None]:
    """A predictor, where the settings name a sidecar; its channel is open meanwhile."""
    if access is None:
        yield None
        return
    sidecar = Sidecar(access)
    try:
        yield Predictor(engine, sidecar, limits)
    finally:
        await sidecar.close()


def _question(asked: pb.PredictRequest, limits: Limits) -> Question:
    if not asked.service or not asked.model:
        raise InputError("the request names no service, or no model; set both")
    return Question(
        lookup=LookupRequest(
            choice=FeatureChoice(service=asked.service),
            keys=decode_columns(asked.keys, "join key", limits),
            request=decode_columns(asked.request_fields, "request field", limits),
            max_age=timedelta(microseconds=asked.max_age_us) if asked.HasField("max_age_us") else None,
        ),
        model=asked.model,
        version=asked.model_version,
        outputs=asked.outputs,
        fail_on_missing=asked.on_missing == pb.ON_MISSING_FAIL,
    )


def _require_known(response: OnlineResponse, *, fail_on_missing: bool) -> None:
    """Rows that could not be read are never predicted from; those that are not there only where that is wanted."""
    for view in response.views:
        if unread := int(np.count_nonzero(view.statuses == Status.ERROR)):
            raise StoreUnreachable(f"{unread} rows of {view.ref} could not be read; try again when the store answers")
    if not fail_on_missing:
        return
    for view in response.views:
        gone = (view.statuses == Status.NOT_FOUND) | (view.statuses == Status.EXPIRED)
        if count := int(np.count_nonzero(gone)):
            raise ServingError(
                f"{count} rows of {view.ref} are missing or expired, the first is row {int(gone.argmax())}; publish "
                "them, leave them out, or let the model see the fills (on_missing: fill)"
            )


def _answer(response: OnlineResponse, told: inference.ModelInferResponse) -> Answer:
    outputs = []
    for tensor, values in zip(told.outputs, raw_outputs(told), strict=True):
        if list(tensor.shape[:1]) != [response.rows]:
            raise ModelFailed(
                f"output {tensor.name!r} of model {told.model_name!r} has shape {list(tensor.shape)} for "
                f"{response.rows} rows; export it with one row out for each row in"
            )
        outputs.append((tensor.name, tensor.datatype, tuple(tensor.shape), values))
    return Answer(features=response, model=told.model_name, version=told.model_version, outputs=tuple(outputs))


def _encode(answer: Answer) -> bytes:
    features = answer.features
    reply = pb.PredictResponse(
        rows=features.rows,
        views=view_results(features),
        served_at_us=features.served_at_us,
        degraded_rows=features.degraded_rows,
        model=answer.model,
        model_version=answer.version,
    )
    for name, datatype, shape, values in answer.outputs:
        reply.outputs.add(name=name, datatype=datatype, shape=shape, values=values)
    return reply.SerializeToString()
