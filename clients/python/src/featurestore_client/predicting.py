"""Predict: the request as a message, and the model's answer with the verdicts on the features it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.calls import PREDICT, Call
from featurestore_client.columns import encode_column
from featurestore_client.errors import understood
from featurestore_client.reply import OnlineReply

OnMissing = Literal["fill", "fail"]

_ON_MISSING = {"fill": pb.ON_MISSING_FILL, "fail": pb.ON_MISSING_FAIL}
_DTYPES = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


class PredictReply:
    """What a model says of the entities that were asked for, row by row; arrays are views of what was received."""

    def __init__(self, message: pb.PredictResponse) -> None:
        self.message = message
        self._verdicts = OnlineReply(pb.GetOnlineFeaturesResponse(rows=message.rows, views=message.views), keys=())

    def __len__(self) -> int:
        return self.message.rows

    @cached_property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """The outputs of the model by name, the first dimension the rows; BYTES are arrays of bytes objects."""
        return {tensor.name: _array(tensor, len(self)) for tensor in self.message.outputs}

    @property
    def model_version(self) -> str:
        """The version of the model that answered."""
        return self.message.model_version

    @property
    def degraded_rows(self) -> int:
        """How many rows rest on features that were STALE in some view."""
        return self.message.degraded_rows

    @property
    def served_at_us(self) -> int:
        """When the features were judged, microseconds since the epoch."""
        return self.message.served_at_us

    @property
    def statuses(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a Status per row."""
        return self._verdicts.statuses

    @property
    def stale_reasons(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a StaleReason per row, 0 where it is not STALE."""
        return self._verdicts.stale_reasons

    @property
    def event_timestamps(self) -> dict[str, NDArray[np.datetime64]]:
        """name@version of a view -> when each row was true, UTC; NaT where it was NOT_FOUND."""
        return self._verdicts.event_timestamps


def predict(
    service: str,
    model: str,
    keys: Mapping[str, Any],
    request: Mapping[str, Any] | None,
    max_age: timedelta | None,
    version: str,
    outputs: Sequence[str],
    on_missing: OnMissing,
) -> Call[PredictReply]:
    """Predict; TypeError names a column that cannot travel."""
    if on_missing not in _ON_MISSING:
        raise ValueError(f"on_missing {on_missing!r} is not known; known: {', '.join(_ON_MISSING)}")
    asked = pb.PredictRequest(
        service=service,
        keys=[encode_column(name, values) for name, values in keys.items()],
        request_fields=[encode_column(name, values) for name, values in (request or {}).items()],
        model=model,
        model_version=version,
        outputs=outputs,
        on_missing=_ON_MISSING[on_missing],
    )
    if max_age is not None:
        asked.max_age_us = max_age // timedelta(microseconds=1)
    return Call(PREDICT, asked.SerializeToString(), PredictReply)


@understood
def _array(tensor: pb.Tensor, rows: int) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    if shape[:1] != (rows,):
        raise ValueError(f"output {tensor.name!r} has the shape {list(shape)} for {rows} rows")
    if tensor.datatype != "BYTES":
        return np.frombuffer(tensor.values, _DTYPES[tensor.datatype]).reshape(shape)
    values: list[bytes] = []
    place = 0
    while place < len(tensor.values):
        begin = place + 4
        place = begin + int.from_bytes(tensor.values[place:begin], "little")
        values.append(tensor.values[begin:place])
    if place > len(tensor.values):
        raise ValueError(f"output {tensor.name!r} ends within a value")
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)
