"""The REST gateway: JSON over HTTP for people and scripts, shaped as Feast's, on the engine that gRPC answers from.

What a request means, which codes errors get and which limits hold is decided elsewhere (`engine`, `status_codes`,
`wire.Limits`). FastAPI is known only here.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from featurestore import __version__
from featurestore.errors import FeatureStoreError, InputError, NotFoundError
from serving.admission import Admission, Overloaded, Rooms
from serving.engine import Engine
from serving.exposition import exposition
from serving.observing import REQUEST_ID, TRACEPARENT, Stage, chose, current, mark, new_request_id
from serving.predict import Predictor
from serving.push import PushDoor
from serving.rest_docs import page
from serving.rest_messages import (
    Alive,
    OnlineFeaturesRequest,
    OnlineFeaturesResponse,
    Problem,
    encode_response,
    lookup_request,
)
from serving.rest_predict import PredictRequest, PredictResponse, encode_answer
from serving.rest_push import PushRequest, PushResponse, answer_push
from serving.status_codes import HTTP_CODES, told
from serving.telemetry import Telemetry
from serving.wire import FeatureChoice, Limits, LookupRequest, feature_choice

#: A body of 10,000 rows with three join keys is under 1 MB.
BODY_BYTES_MAX = 8 << 20
#: HTTP requests bring no deadline, and nobody waits for ever.
TIMEOUT_S = 30.0
#: Where a request's scope holds the place that it was given.
_PLACE = "featurestore.place"
LOOKUP, PUSH, PREDICT = "/get-online-features", "/push", "/predict"
#: Routes that are admitted, timed and counted.
OBSERVED = frozenset({LOOKUP, PUSH, PREDICT})
_RETRY_AFTER_S = 1

_CODES = {number: code.name for code, number in HTTP_CODES.items()}
_CODES |= {413: "RESOURCE_EXHAUSTED", 405: "UNIMPLEMENTED", 500: "INTERNAL"}
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")

Result = TypeVar("Result")
Encoded = TypeVar("Encoded")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Caller(Protocol):
    """Who sent a request; each `require_...` raises what tells it that it may not."""

    def require_read(self, service: str, features: Sequence[str] = ()) -> None:
        """May it read this service; or, where none is named, these features?"""
        ...

    def require_push(self, view: str) -> None:
        """May it push rows to this view?"""
        ...

    def require_operate(self) -> None:
        """May it look into the process?"""
        ...

    def discreet(self, error: NotFoundError) -> NotFoundError:
        """The error without names that it may not know of."""
        ...


#: Who sent these values of the `authorization` header; raises for a caller that is not let in.
Authenticate = Callable[[Sequence[str]], Awaitable[Caller]]


class _Anyone:
    """Every caller of a server without doors."""

    def require_read(self, service: str, features: Sequence[str] = ()) -> None:
        """It may."""

    def require_push(self, view: str) -> None:
        """It may."""

    def require_operate(self) -> None:
        """It may."""

    def discreet(self, error: NotFoundError) -> NotFoundError:
        """It may know all names."""
        return error


async def anyone(authorization: Sequence[str]) -> Caller:
    """Lets everybody in."""
    return _Anyone()


# ---------------------------------------------------------------- lookups, also for a model


async def answer(
    engine: Engine, asked: OnlineFeaturesRequest, caller: Caller, limits: Limits, threads: Executor
) -> bytes:
    """The JSON text of an OnlineFeaturesResponse; errors are those of gRPC."""
    if asked.feature_service is not None and asked.features is not None:
        raise InputError("the request names a feature_service and features; set one of them")
    features = tuple(asked.features or ())
    choice = feature_choice(asked.feature_service or "", features, asked.full_feature_names, limits)
    caller.require_read(choice.service, choice.features)
    request = await _in_thread(threads, _decoded, engine, asked, choice, limits)
    _, response = await engine.respond(request, threads)
    body = await _in_thread(threads, _encoded, encode_response, response)
    engine.sent(response)
    return body


async def predict(
    engine: Engine, predictor: Predictor, asked: PredictRequest, caller: Caller, limits: Limits, threads: Executor
) -> bytes:
    """The JSON text of a PredictResponse; errors are those of gRPC."""
    choice = feature_choice(asked.feature_service, (), False, limits)
    caller.require_read(choice.service)
    request = await _in_thread(threads, _decoded, engine, asked, choice, limits)
    answer = await predictor.answer(asked.question(request), threads)
    body = await _in_thread(threads, _encoded, encode_answer, answer)
    engine.sent(answer.features)
    return body


async def _in_thread(threads: Executor, work: Callable[..., Result], *arguments: Any) -> Result:
    within = contextvars.copy_context().run  # the thread marks and logs for this request
    return await asyncio.get_running_loop().run_in_executor(threads, partial(within, work, *arguments))


def _decoded(
    engine: Engine, asked: OnlineFeaturesRequest | PredictRequest, choice: FeatureChoice, limits: Limits
) -> LookupRequest:
    mark(Stage.QUEUE)
    plan = engine.plan(choice)
    chose(plan.name)
    return lookup_request(asked.entities, asked.max_age_s, choice, plan, limits)


def _encoded(encode: Callable[[Encoded], bytes], reply: Encoded) -> bytes:
    body = encode(reply)
    mark(Stage.ENCODE)
    return body


# ---------------------------------------------------------------- errors


def problem(status: int, detail: str, code: str, retry_after_s: int = _RETRY_AFTER_S, request_id: str = "") -> Response:
    """An error as the client gets it."""
    body = Problem(
        title=_title(status),
        status=status,
        detail=detail,
        code=code,
        retryable=code in _RETRYABLE and status != 413,
        request_id=request_id or _request_id(),
    )
    headers = {"retry-after": str(retry_after_s)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    # json.dumps, unlike pydantic, writes any string that came in, half a surrogate pair too.
    text = json.dumps(body.model_dump())
    return Response(text, status, headers, media_type="application/problem+json")


def _request_id() -> str:
    """That of the request being answered; one of its own where requests are not observed."""
    call = current()
    return call.request_id if call else new_request_id()


def _title(status: int) -> str:
    from http import HTTPStatus

    return HTTPStatus(status).phrase


async def _on_error(request: Request, error: Exception) -> Response:
    request_id = _request_id()
    code, message = told(error, request.url.path, request_id)
    after_s = math.ceil(error.retry_after_ms / 1e3) if isinstance(error, Overloaded) else _RETRY_AFTER_S
    return problem(HTTP_CODES.get(code, 500), message, code.name, after_s, request_id)


async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
    if not request.headers.get("content-type", "").startswith("application/json"):
        faults.append("the header content-type must say application/json")
    return problem(400, f"{'; '.join(faults)}; see /docs for what is taken", grpc.StatusCode.INVALID_ARGUMENT.name)


async def _on_http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    detail = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.url.path} does not take {request.method}; /docs says what it takes",
    }.get(status, str(error.detail))
    response = problem(status, detail, _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT.name))
    response.headers.update(error.headers or {})
    return response


# ---------------------------------------------------------------- the application


def rest_app(
    engine: Engine,
    telemetry: Telemetry,
    limits: Limits,
    threads: Executor,
    ready: Callable[[], bool],
    authenticate: Authenticate,
    rooms: Rooms,
    push: PushDoor | None,
    predictor: Predictor | None,
) -> FastAPI:
    """The application over a started engine; lookups run on `threads`. Without a `push` door nothing is pushed, without
    a `predictor` nothing is predicted."""
    app = FastAPI(
        title="featurestore",
        version=__version__,
        description="Online features over HTTP. gRPC answers the same, several times faster.",
        docs_url=None,
        redoc_url=None,
    )
    by_route = {LOOKUP: rooms.rest, PUSH: rooms.pushes, PREDICT: rooms.predictions}
    app.add_middleware(_Observed, telemetry=telemetry, rooms=by_route)
    for kind in (FeatureStoreError, TimeoutError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]  # narrower than Exception
    app.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    _add_lookup(app, engine, limits, threads, authenticate)
    if push is not None:
        _add_push(app, push, limits, authenticate)
    _add_predict(app, engine, predictor, limits, threads, authenticate)
    _add_operations(app, telemetry, ready, authenticate)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    _add_docs(app)
    return app


_REFUSED = ((400, "Malformed"), (401, "Unknown caller"), (403, "Not granted"), (404, "Unknown name"))
_STALE = (409, "STALE, and the service refuses such rows")
_NOT_PREDICTED = (
    (409, "Missing or STALE rows that are to fail, or a model of other features"),
    (501, "No sidecar is configured"),
    (502, "The model failed"),
)
_FAILED = ((413, "Too large"), (429, "Overloaded"), (500, "A defect"), (503, "The store is away"), (504, "Too slow"))


def _problems(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": says} for status, says in statuses}


def _add_lookup(app: FastAPI, engine: Engine, limits: Limits, threads: Executor, authenticate: Authenticate) -> None:
    @app.post(LOOKUP, response_model=OnlineFeaturesResponse, responses=_problems(*_REFUSED, _STALE, *_FAILED))
    async def get_online_features(asked: OnlineFeaturesRequest, request: Request) -> Response:
        """The features of many entities, with a verdict per view and row."""
        caller = await authenticate(request.headers.getlist("authorization"))
        try:
            body = await answer(engine, asked, caller, limits, threads)
        except NotFoundError as error:
            raise caller.discreet(error) from None
        return Response(body, media_type="application/json")


def _add_push(app: FastAPI, push: PushDoor, limits: Limits, authenticate: Authenticate) -> None:
    @app.post(PUSH, response_model=PushResponse, responses=_problems(*_REFUSED, *_FAILED))
    async def push_rows(asked: PushRequest, request: Request) -> Response:
        """Take rows into history and online; one verdict per row. Sent again, a row that was taken is a duplicate."""
        caller = await authenticate(request.headers.getlist("authorization"))
        caller.require_push(asked.push_source_name)
        try:
            # Not the threads of lookups: a push waits for disks. It is finished even when the caller has given up.
            body = await request.scope[_PLACE].finish(partial(answer_push, push, asked, limits))
        except NotFoundError as error:
            raise caller.discreet(error) from None
        return Response(body, media_type="application/json")


def _add_predict(
    app: FastAPI,
    engine: Engine,
    predictor: Predictor | None,
    limits: Limits,
    threads: Executor,
    authenticate: Authenticate,
) -> None:
    @app.post(PREDICT, response_model=PredictResponse, responses=_problems(*_REFUSED, *_NOT_PREDICTED, *_FAILED))
    async def predict_rows(asked: PredictRequest, request: Request) -> Response:
        """What a model says of many entities, with the verdicts on the features that it rests on."""
        caller = await authenticate(request.headers.getlist("authorization"))
        if predictor is None:
            raise HTTPException(
                501, "this server has nobody who runs models; start `featurestore sidecar`, and set inference.address"
            )
        try:
            body = await predict(engine, predictor, asked, caller, limits, threads)
        except NotFoundError as error:
            raise caller.discreet(error) from None
        return Response(body, media_type="application/json")


def _add_operations(app: FastAPI, telemetry: Telemetry, ready: Callable[[], bool], authenticate: Authenticate) -> None:
    @app.get("/health", response_model=Alive)
    async def health() -> Alive:
        """Whether the process answers at all."""
        return Alive(status="ok")

    @app.get("/ready", response_model=Alive, responses={503: {"model": Problem, "description": "Not now"}})
    async def readiness() -> Any:
        """Whether requests should be sent here."""
        if ready():
            return Alive(status="ready")
        return problem(503, "the process is stopping; ask another one", grpc.StatusCode.UNAVAILABLE.name)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """The numbers of all workers, for Prometheus."""
        (await authenticate(request.headers.getlist("authorization"))).require_operate()
        accept = request.headers.get("accept", "")
        text, content_type = await asyncio.to_thread(exposition, telemetry.project, telemetry.collect, accept)
        return Response(text, headers={"content-type": content_type})


def _add_docs(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """What there is to call, as a page."""
        beside = f"{request.scope.get('root_path', '')}{app.openapi_url}"
        return Response(page(app.openapi(), beside), media_type="text/html")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """What FastAPI derives, with the errors as we give them: problems, and 400 instead of 422."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                for status, response in operation["responses"].items():
                    if status != "200":
                        response["content"] = {"application/problem+json": response["content"].pop("application/json")}
        app.openapi_schema = schema
    return app.openapi_schema


class _Observed:
    """Around everything: admission, the id and the telemetry of each request, and the bound on its body.

    A body is complete before its request is admitted, so a slow sender takes no place from others, and nothing is
    parsed of a request that is turned away.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        telemetry: Telemetry,
        rooms: Mapping[str, Admission],
    ) -> None:
        self._app, self._telemetry, self._rooms = app, telemetry, rooms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in OBSERVED:
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        call = self._telemetry.begin(scope["path"], headers.get(REQUEST_ID.encode()), headers.get(TRACEPARENT.encode()))
        code = "CANCELLED"

        async def answering(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                status = message["status"]
                code = "OK" if status < 400 else _CODES.get(status, "UNKNOWN")
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), call.request_id.encode())]
            elif not message.get("more_body"):
                self._telemetry.end(call, code)  # whoever has the reply finds it counted
            await send(message)

        try:
            await self._admitted(scope, receive, answering)
        except HTTPException as error:
            await (await _on_http(Request(scope), error))(scope, receive, answering)
        except Exception as error:  # noqa: BLE001 - a defect, told by its request id like those of gRPC
            response = await _on_error(Request(scope), error)
            if code == "CANCELLED":  # nothing is sent yet
                await response(scope, receive, answering)
        finally:
            if not call.ended_ns:
                self._telemetry.end(call, code)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            body = await _body(receive)
        if body is None:
            return  # the sender has gone
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return parts.pop() if parts else await receive()

        async with asyncio.timeout(TIMEOUT_S), self._rooms[scope["path"]].inside() as place:
            scope[_PLACE] = place
            await self._app(scope, again, send)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None when the connection is lost before its end."""
    parts, received = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > BODY_BYTES_MAX:
            raise HTTPException(413, f"the body has more than {BODY_BYTES_MAX} bytes; split the request into several")
        if not message.get("more_body"):
            return b"".join(parts)
