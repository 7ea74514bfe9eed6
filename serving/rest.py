"""The REST gateway: JSON over HTTP for people and scripts, shaped as Feast's, on the engine that gRPC answers from.

The only module that knows FastAPI and uvicorn. What a request means, which codes errors get and which limits hold is
decided elsewhere (`engine`, `status_codes`, `wire.Limits`); how values are written is `rest_values`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import grpc
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import Field as Setting
from starlette.exceptions import HTTPException

from featurestore import __version__
from featurestore.dtypes import DType
from featurestore.errors import ConfigError, FeatureStoreError, InputError
from featurestore.status import StaleReason
from serving.engine import Engine
from serving.exposition import exposition
from serving.inputs import check_names
from serving.observing import REQUEST_ID, TRACEPARENT, Stage, chose, current, mark, new_request_id
from serving.plan import ServicePlan
from serving.response import OnlineResponse, ViewVerdicts
from serving.rest_values import columns_from_json, iso_instants, json_values
from serving.status_codes import HTTP_CODES, told
from serving.telemetry import Telemetry
from serving.wire import FeatureChoice, Limits, LookupRequest, feature_choice

log = logging.getLogger(__name__)

#: A body of 10,000 rows with three join keys is under 1 MB.
BODY_BYTES_MAX = 8 << 20
#: HTTP requests bring no deadline, and nobody waits for ever.
TIMEOUT_S = 30.0
#: Threads for requests; writing JSON holds the interpreter, so more would only take turns.
THREADS_MAX = 2
OBSERVED = frozenset({"/get-online-features"})
_RETRY_AFTER_S = 1
_EPOCH_TEXT = "1970-01-01T00:00:00.000000Z"

_CODES = {number: code.name for code, number in HTTP_CODES.items()} | {413: "RESOURCE_EXHAUSTED", 405: "UNIMPLEMENTED"}
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class RestOptions:
    """Where to listen, and the bounds. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 10.0
    #: Let other workers listen at the same port.
    reuse_port: bool = False


# ---------------------------------------------------------------- messages

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None


class OnlineFeaturesRequest(BaseModel):
    """Which features, of which entities."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"feature_service": "comfort", "entities": {"station": ["north", "east"]}}],
        },
    )

    feature_service: Annotated[str | None, Setting(description="A feature service, by name; or name `features`.")] = (
        None
    )
    features: Annotated[
        list[str] | None,
        Setting(description="Features as `view:field` or `view@version:field`, in the order of the reply."),
    ] = None
    entities: Annotated[
        dict[str, list[Scalar | list[Scalar]]],
        Setting(description="Join keys and request fields: name -> one value per row. All have the same length."),
    ]
    full_feature_names: Annotated[
        bool, Setting(description="Name features `view__field` instead of by their name in the service.")
    ] = False
    max_age_s: Annotated[
        float | None, Setting(gt=0, le=1e9, description="Rows whose event is older are STALE, in seconds.")
    ] = None


class Metadata(BaseModel):
    """What the results are."""

    feature_names: Annotated[list[str], Setting(description="A name per result: join keys, then features.")]
    served_at: Annotated[str, Setting(description="The time that rows were judged at.")]
    degraded_rows: Annotated[int, Setting(description="Rows that are STALE in some view.")]


class FeatureColumn(BaseModel):
    """One join key or feature, a value per row."""

    values: Annotated[list[Any], Setting(description="See docs/rest.md for how each type is written.")]
    statuses: Annotated[
        list[str], Setting(description="PRESENT, NULL, NOT_FOUND, EXPIRED, STALE or ERROR: of the row in its view.")
    ]
    event_timestamps: Annotated[list[str], Setting(description="When the row was true; 1970 where there is none.")]
    stale_reasons: Annotated[
        list[str] | None,
        Setting(description="MAX_AGE, FRESHNESS, UNCONFIRMED or NONE per row; absent where no row is STALE."),
    ] = None


class OnlineFeaturesResponse(BaseModel):
    """The features, a column each, in the order of `metadata.feature_names`."""

    metadata: Metadata
    results: list[FeatureColumn]


class Problem(BaseModel):
    """What went wrong, and the way out (RFC 9457)."""

    type: str = "about:blank"
    title: Annotated[str, Setting(description="The status in words.")]
    status: Annotated[int, Setting(description="The HTTP status.")]
    detail: Annotated[str, Setting(description="What is wrong, where, and what would do.")]
    code: Annotated[str, Setting(description="The gRPC status code that means the same.")]
    retryable: Annotated[bool, Setting(description="Whether the same request may succeed later.")]
    request_id: Annotated[str, Setting(description="What the log of the server calls this request.")]


class Alive(BaseModel):
    """The process answers."""

    status: str


# ---------------------------------------------------------------- the lookup


def answer(engine: Engine, asked: OnlineFeaturesRequest, limits: Limits) -> bytes:
    """The JSON text of an OnlineFeaturesResponse; errors are those of gRPC."""
    mark(Stage.QUEUE)
    if asked.feature_service is not None and asked.features is not None:
        raise InputError("the request names a feature_service and features; set one of them")
    features = tuple(asked.features or ())
    choice = feature_choice(asked.feature_service or "", features, asked.full_feature_names, limits)
    plan = engine.plan(choice)
    chose(plan.name)
    _, response = engine.respond(_lookup_request(asked, choice, plan, limits))
    body = encode_response(response)
    mark(Stage.ENCODE)
    return body


def _lookup_request(
    asked: OnlineFeaturesRequest, choice: FeatureChoice, plan: ServicePlan, limits: Limits
) -> LookupRequest:
    request_types = {name: field.dtype for name, field in plan.request_fields.items()}
    dtypes: Mapping[str, DType] = {**plan.join_keys, **request_types}
    for name, values in asked.entities.items():
        limits.check_rows(len(values), f"entity {name!r}")
    check_names(asked.entities, dtypes, "entity", plan.owner)
    columns = columns_from_json(asked.entities, dtypes)
    return LookupRequest(
        choice=choice,
        keys={name: column for name, column in columns.items() if name in plan.join_keys},
        request={name: column for name, column in columns.items() if name in request_types},
        max_age=None if asked.max_age_s is None else max(timedelta(seconds=asked.max_age_s), timedelta.resolution),
    )


def encode_response(response: OnlineResponse) -> bytes:
    """The reply's JSON text. Verdicts are the same for all features of a view, so they are written once a view."""
    plan = response.plan
    keys = {name: column for name, column in response.keys.items() if name not in response.names}
    given = _verdicts_text(None, response.rows)
    verdicts = {view.ref: _verdicts_text(view, response.rows) for view in response.views}
    results = [_result_text(json_values(column, plan.join_keys[name]), given) for name, column in keys.items()]
    for output, column in zip(plan.outputs, response.columns, strict=True):
        results.append(_result_text(json_values(column, output.field.dtype), verdicts.get(output.view, given)))
    metadata = {
        "feature_names": [*keys, *response.names],
        "served_at": _instant_text(response.served_at_us),
        "degraded_rows": response.degraded_rows,
    }
    return f'{{"metadata":{_json(metadata)},"results":[{",".join(results)}]}}'.encode()


def _verdicts_text(view: ViewVerdicts | None, rows: int) -> str:
    """The members after `values`; None stands for what came with the request."""
    if view is None:
        return f'"statuses":{_json(["PRESENT"] * rows)},"event_timestamps":{_json([_EPOCH_TEXT] * rows)}'
    text = (
        f'"statuses":{_json(view.status_names().to_pylist())},"event_timestamps":{_json(iso_instants(view.event_us))}'
    )
    if view.reasons.any():
        text += f',"stale_reasons":{_json([StaleReason(reason).name for reason in view.reasons.tolist()])}'
    return text


def _result_text(values: list[Any], verdicts: str) -> str:
    return f'{{"values":{_json(values)},{verdicts}}}'


def _instant_text(us: int) -> str:
    import numpy as np

    return iso_instants(np.array([us]))[0]


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


# ---------------------------------------------------------------- errors


def problem(status: int, detail: str, code: str) -> Response:
    """An error as the client gets it."""
    call = current()
    body = Problem(
        title=_title(status),
        status=status,
        detail=detail,
        code=code,
        retryable=code in _RETRYABLE and status != 413,
        request_id=call.request_id if call else new_request_id(),
    )
    headers = {"retry-after": str(_RETRY_AFTER_S)} if status in (429, 503) else {}
    # json.dumps, unlike pydantic, writes any string that came in, half a surrogate pair too.
    text = json.dumps(body.model_dump())
    return Response(text, status, headers, media_type="application/problem+json")


def _title(status: int) -> str:
    from http import HTTPStatus

    return HTTPStatus(status).phrase


async def _on_error(request: Request, error: Exception) -> Response:
    call = current()
    code, message = told(error, request.url.path, call.request_id if call else "")
    return problem(HTTP_CODES.get(code, 500), message, code.name)


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
    engine: Engine, telemetry: Telemetry, limits: Limits, threads: Executor, ready: Callable[[], bool]
) -> FastAPI:
    """The application over a started engine; lookups run on `threads`."""
    app = FastAPI(
        title="featurestore",
        version=__version__,
        description="Online features over HTTP. gRPC answers the same, several times faster.",
        redoc_url=None,
    )
    app.add_middleware(_Observed, telemetry=telemetry)
    for kind in (FeatureStoreError, TimeoutError):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]  # narrower than Exception
    app.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    _add_lookup(app, engine, limits, threads)
    _add_operations(app, telemetry, ready)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_lookup(app: FastAPI, engine: Engine, limits: Limits, threads: Executor) -> None:
    refused = ((400, "Malformed"), (404, "Unknown name"), (409, "STALE, and the service refuses such rows"))
    failed = ((413, "Too large"), (429, "Overloaded"), (500, "A defect"), (503, "The store is away"), (504, "Too slow"))

    @app.post(
        "/get-online-features",
        response_model=OnlineFeaturesResponse,
        responses={status: {"model": Problem, "description": says} for status, says in (*refused, *failed)},
    )
    async def get_online_features(asked: OnlineFeaturesRequest) -> Response:
        """The features of many entities, with a verdict per view and row."""
        within = contextvars.copy_context().run
        async with asyncio.timeout(TIMEOUT_S):
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(threads, within, answer, engine, asked, limits)
        return Response(body, media_type="application/json")


def _add_operations(app: FastAPI, telemetry: Telemetry, ready: Callable[[], bool]) -> None:
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
    def metrics(request: Request) -> Response:
        """The numbers of all workers, for Prometheus."""
        text, content_type = exposition(telemetry.project, telemetry.collect, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})


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
    """Around everything: the id and the telemetry of each request, and the bound on its body."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

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
            await self._app(scope, _bounded(receive), answering)
        except Exception as error:  # noqa: BLE001 - a defect, told by its request id like those of gRPC
            response = await _on_error(Request(scope), error)
            if code == "CANCELLED":  # nothing is sent yet
                await response(scope, receive, answering)
        finally:
            if not call.ended_ns:
                self._telemetry.end(call, code)


def _bounded(receive: Receive) -> Receive:
    """The body's parts, until there are too many bytes of it."""
    received = 0

    async def part() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES_MAX:
            raise HTTPException(413, f"the body has more than {BODY_BYTES_MAX} bytes; split the request into several")
        return message

    return part


# ---------------------------------------------------------------- the server


class _Server(uvicorn.Server):
    """Without hands on the process's signals: whoever runs the process tells it when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def rest_serving(engine: Engine, telemetry: Telemetry, options: RestOptions) -> AsyncIterator[str]:
    """A running gateway on a started engine; yields `host:port`, drains on the way out."""
    listener = _bind(options)
    with contextlib.closing(listener), ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="rest") as threads:
        app = rest_app(engine, telemetry, options.limits, threads, lambda: not server.should_exit)
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=max(1, round(options.drain_s)),
            )
        )
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"{options.host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


def _bind(options: RestOptions) -> socket.socket:
    """A listening socket; ConfigError when the port is taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (options.host, options.port), family=family, reuse_port=options.reuse_port, backlog=1024
        )
        # asyncio sets it only on sockets that name their protocol; without it, every second reply waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ConfigError(
            f"cannot serve REST on {options.host}:{options.port}: {error.strerror}; set another rest.port, or 0 for "
            "a free one"
        ) from error
