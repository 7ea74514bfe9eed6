"""Pushes over REST: Feast's request as columns of the view's types, and an answer for each row.

Values are written as everywhere in REST (docs/rest.md). A value that is none of its type is the fault of the whole
request, as in a column of Arrow; one that breaks the contract is the fault of its row alone.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting

from featurestore.dtypes import DType, Timestamp
from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.ingest.push import PushResult, RowResult
from serving.push import PushDoor
from serving.rest_messages import Scalar
from serving.rest_values import columns_from_json
from serving.wire import Limits

_NAMES = [""] + [result.name for result in RowResult]


class PushRequest(BaseModel):
    """Rows for one feature view."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "push_source_name": "readings",
                    "df": {
                        "station": ["south"],
                        "measured_at": ["2024-05-01T19:00:00Z"],
                        "temperature": [21.5],
                        "humidity": [40],
                    },
                }
            ],
        },
    )

    push_source_name: Annotated[str, Setting(min_length=1, description="The feature view: `view` or `view@version`.")]
    df: Annotated[
        dict[str, list[Scalar | list[Scalar]]],
        Setting(description="Columns named as in the view's source: name -> one value per row."),
    ]
    to: Annotated[
        Literal["online", "offline", "online_and_offline"],
        Setting(
            description="`online` and `online_and_offline` mean the same, for every accepted row becomes history and "
            "comes online; `offline` is refused."
        ),
    ] = "online"


class RejectedRow(BaseModel):
    """Why a row was not taken."""

    row: Annotated[int, Setting(description="Its place in the request, from 0.")]
    field: Annotated[str, Setting(description="The column of its first fault.")]
    rule: Annotated[str, Setting(description="The rule it breaks.")]
    reason: Annotated[str, Setting(description="The rule in words.")]
    value: Annotated[str, Setting(description="The value, as JSON text.")]


class PushResponse(BaseModel):
    """What became of each row."""

    view: Annotated[str, Setting(description="The view that was pushed to, as name@version.")]
    statuses: Annotated[
        list[str], Setting(description="ACCEPTED, DUPLICATE, CORRECTION, PENDING or REJECTED: one per row.")
    ]
    rejections: Annotated[list[RejectedRow], Setting(description="One for each rejected row, in order.")]
    pending_reason: Annotated[str, Setting(description="Why rows are PENDING; empty when none is.")]


def answer_push(door: PushDoor, asked: PushRequest, limits: Limits) -> bytes:
    """The JSON text of a PushResponse. Waits for disks and stores; errors are those of gRPC."""
    if asked.to == "offline":
        raise InputError(
            'to is "offline", and a pushed row comes online as well; push it with "online_and_offline", or load it '
            "from the view's source with materialize"
        )
    for name, values in asked.df.items():
        limits.check_rows(len(values), "column", name)
    result = door.push(asked.push_source_name, _columns(asked, door.view(asked.push_source_name)))
    return _encoded(result)


def _columns(asked: PushRequest, view: FeatureView) -> dict[str, pa.Array]:
    """The columns that the view has; further ones are ignored, as in its source."""
    source = view.source
    dtypes: dict[str, DType] = {name: field.dtype for name, field in view.fields.items()}
    dtypes |= {**view.join_keys, source.timestamp_field: Timestamp}
    if source.created_timestamp_column is not None:
        dtypes[source.created_timestamp_column] = Timestamp
    known = {name: values for name, values in asked.df.items() if name in dtypes}
    return columns_from_json(known, dtypes, "column")


def _encoded(result: PushResult) -> bytes:
    members = ("row", "field", "rule", "reason", "value")
    refused = result.rejections.listed(len(result.rejections))
    answer = {
        "view": result.view,
        "statuses": [_NAMES[code] for code in result.results.tolist()],
        "rejections": [dict(zip(members, rejection, strict=True)) for rejection in refused],
        "pending_reason": result.pending_reason,
    }
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
