"""What the REST gateway takes and gives: the models that OpenAPI shows, a request as columns, a reply as JSON text.

Shaped as Feast's messages; docs/rest.md says how values are written, `rest_values` does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import Field as Setting

from featurestore.dtypes import DType
from featurestore.status import StaleReason
from serving.inputs import check_names
from serving.plan import ServicePlan
from serving.response import OnlineResponse, ViewVerdicts
from serving.rest_values import columns_from_json, iso_instants, json_values
from serving.wire import FeatureChoice, Limits, LookupRequest

_EPOCH_TEXT = "1970-01-01T00:00:00.000000Z"

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
Entities = Annotated[
    dict[str, list[Scalar | list[Scalar]]],
    Setting(description="Join keys and request fields: name -> one value per row. All have the same length."),
]
MaxAge = Annotated[float | None, Setting(gt=0, le=1e9, description="Rows whose event is older are STALE, in seconds.")]
StaleReasons = Annotated[
    list[str] | None,
    Setting(description="MAX_AGE, FRESHNESS, UNCONFIRMED or NONE per row; absent where no row is STALE."),
]


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
    entities: Entities
    full_feature_names: Annotated[
        bool, Setting(description="Name features `view__field` instead of by their name in the service.")
    ] = False
    max_age_s: MaxAge = None


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
    stale_reasons: StaleReasons = None


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


def lookup_request(
    entities: Mapping[str, Sequence[Any]],
    max_age_s: float | None,
    choice: FeatureChoice,
    plan: ServicePlan,
    limits: Limits,
) -> LookupRequest:
    """What a request means to the engine; InputError names what is wrong with its entities."""
    request_types = {name: field.dtype for name, field in plan.request_fields.items()}
    dtypes: Mapping[str, DType] = {**plan.join_keys, **request_types}
    for name, values in entities.items():
        limits.check_rows(len(values), "entity", name)
    check_names(entities, dtypes, "entity", plan.owner)
    columns = columns_from_json(entities, dtypes)
    return LookupRequest(
        choice=choice,
        keys={name: column for name, column in columns.items() if name in plan.join_keys},
        request={name: column for name, column in columns.items() if name in request_types},
        max_age=None if max_age_s is None else max(timedelta(seconds=max_age_s), timedelta.resolution),
    )


def encode_response(response: OnlineResponse) -> bytes:
    """The reply's JSON text. Verdicts are the same for all features of a view, so they are written once a view."""
    plan = response.plan
    keys = {name: column for name, column in response.keys.items() if name not in response.names}
    given = verdicts_text(None, response.rows)
    verdicts = {view.ref: verdicts_text(view, response.rows) for view in response.views}
    results = [_result_text(json_values(column, plan.join_keys[name]), given) for name, column in keys.items()]
    for output, column in zip(plan.outputs, response.columns, strict=True):
        results.append(_result_text(json_values(column, output.field.dtype), verdicts.get(output.view, given)))
    metadata = {
        "feature_names": [*keys, *response.names],
        "served_at": instant_text(response.served_at_us),
        "degraded_rows": response.degraded_rows,
    }
    return f'{{"metadata":{json_text(metadata)},"results":[{",".join(results)}]}}'.encode()


def verdicts_text(view: ViewVerdicts | None, rows: int) -> str:
    """The members after `values`, or after the name of the view; None stands for what came with the request."""
    if view is None:
        return f'"statuses":{json_text(["PRESENT"] * rows)},"event_timestamps":{json_text([_EPOCH_TEXT] * rows)}'
    statuses, events = json_text(view.status_names().to_pylist()), json_text(iso_instants(view.event_us))
    text = f'"statuses":{statuses},"event_timestamps":{events}'
    if view.reasons.any():
        text += f',"stale_reasons":{json_text([StaleReason(reason).name for reason in view.reasons.tolist()])}'
    return text


def _result_text(values: list[Any], verdicts: str) -> str:
    return f'{{"values":{json_text(values)},{verdicts}}}'


def instant_text(us: int) -> str:
    """Microseconds since the epoch as ISO 8601 text."""
    return iso_instants(np.array([us]))[0]


def json_text(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
