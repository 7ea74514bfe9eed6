"""Predictions over REST: what is asked in the shape of a lookup, and a model's outputs as columns beside the verdicts.

Values are written as everywhere in REST (docs/rest.md), a row of an output as `featurestore predict` writes it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting

from featurestore.errors import InputError, ModelFailed
from serving.inference.tensors import DTYPES, Tensor, from_raw
from serving.predict import Answer, Question
from serving.rest_messages import Entities, MaxAge, StaleReasons, instant_text, json_text, verdicts_text
from serving.rest_values import SAFE_INTEGER_MAX, float_value, integer_value
from serving.wire import LookupRequest

#: Longest name of a model or a version; with a bound, pydantic takes no text that is not Unicode, as gRPC does not.
NAME_CHARS_MAX = 1_000


class PredictRequest(BaseModel):
    """Which model, of which entities."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "feature_service": "departures",
                    "model": "late",
                    "entities": {"origin": ["JFK"], "number": [1], "hour": [12]},
                }
            ],
        },
    )

    feature_service: Annotated[
        str, Setting(min_length=1, description="The feature service whose features the model takes.")
    ]
    model: Annotated[str, Setting(min_length=1, max_length=NAME_CHARS_MAX, description="The model.")]
    model_version: Annotated[
        str,
        Setting(
            max_length=NAME_CHARS_MAX, description="One of its versions; empty for the one that the sidecar chooses."
        ),
    ] = ""
    entities: Entities
    outputs: Annotated[
        list[str], Setting(description="Which outputs of the model to return, in this order; none for all.")
    ] = []
    on_missing: Annotated[
        Literal["fill", "fail"],
        Setting(
            description="What to do about rows that are NOT_FOUND or EXPIRED in some view: let the model see the fills "
            "of their fields, as in training, or refuse the request."
        ),
    ] = "fill"
    max_age_s: MaxAge = None

    def question(self, lookup: LookupRequest) -> Question:
        """The same for a predictor, whose entities are columns."""
        return Question(
            lookup=lookup,
            model=self.model,
            version=self.model_version,
            outputs=self.outputs,
            fail_on_missing=self.on_missing == "fail",
        )


class PredictionMetadata(BaseModel):
    """What the outputs are of."""

    model_config = ConfigDict(protected_namespaces=())

    model: Annotated[str, Setting(description="The model that answered.")]
    model_version: Annotated[str, Setting(description="Its version.")]
    served_at: Annotated[str, Setting(description="The time that the features were judged at.")]
    degraded_rows: Annotated[int, Setting(description="Rows that are STALE in some view.")]


class OutputColumn(BaseModel):
    """One output of the model, a value per row."""

    name: Annotated[str, Setting(description="The model's name for it.")]
    datatype: Annotated[
        str, Setting(description="Its type, as the Open Inference Protocol calls it: FP32, INT64, BYTES, ...")
    ]
    shape: Annotated[list[int], Setting(description="Its shape; the first is the number of rows.")]
    values: Annotated[
        list[Any],
        Setting(
            description="A number, text, true or false per row, or arrays of them where the model gives several; sizes "
            "of 1 in `shape` are no arrays. docs/rest.md says how each type is written."
        ),
    ]


class ViewResult(BaseModel):
    """What the features rest on: one verdict per row for one view."""

    view: Annotated[str, Setting(description="The view, as name@version.")]
    statuses: Annotated[list[str], Setting(description="PRESENT, NULL, NOT_FOUND, EXPIRED or STALE.")]
    event_timestamps: Annotated[list[str], Setting(description="When the row was true; 1970 where there is none.")]
    stale_reasons: StaleReasons = None


class PredictResponse(BaseModel):
    """What the model says, with what it rests on."""

    metadata: PredictionMetadata
    outputs: Annotated[list[OutputColumn], Setting(description="In the order asked for, or the model's.")]
    views: Annotated[list[ViewResult], Setting(description="In the order of the feature service.")]


def encode_answer(answer: Answer) -> bytes:
    """The JSON text of a PredictResponse; ModelFailed for an output that JSON has no form for."""
    features = answer.features
    metadata = {
        "model": answer.model,
        "model_version": answer.version,
        "served_at": instant_text(features.served_at_us),
        "degraded_rows": features.degraded_rows,
    }
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "values": json_rows(name, datatype, shape, data)}
        for name, datatype, shape, data in answer.outputs
    ]
    views = [f'{{"view":{json_text(view.ref)},{verdicts_text(view, features.rows)}}}' for view in features.views]
    text = f'"metadata":{json_text(metadata)},"outputs":{json_text(outputs)},"views":[{",".join(views)}]'
    return f"{{{text}}}".encode()


def json_rows(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> list[Any]:
    """The values of an output as JSON has them, one per row; ModelFailed where it has no form for them."""
    if datatype not in DTYPES:
        raise ModelFailed(
            f"output {name!r} is {datatype}, which JSON has no form for; ask over gRPC, or for other outputs"
        )
    try:
        tensor = from_raw(data, datatype, shape, f"output {name!r}")
    except InputError as error:
        raise ModelFailed(f"the server of the model: {error}") from error
    return _plain(name, tensor).reshape([shape[0], *(size for size in shape[1:] if size != 1)]).tolist()


def _plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor with what no JSON number carries written as text."""
    match tensor.dtype.kind:
        case "f" if not np.isfinite(tensor).all():
            return _each(float_value, tensor)
        case "i" | "u" if (np.abs(tensor.astype(np.float64)) > SAFE_INTEGER_MAX).any():
            return _each(integer_value, tensor)
        case "O":
            try:
                return _each(bytes.decode, tensor)
            except UnicodeDecodeError as error:
                raise ModelFailed(f"output {name!r} is not UTF-8 ({error.reason}); ask for it over gRPC") from error
    return tensor


def _each(write: Any, tensor: Tensor) -> Tensor:
    written = np.empty(math.prod(tensor.shape), object)
    written[:] = [write(value) for value in tensor.ravel().tolist()]
    return written.reshape(tensor.shape)
