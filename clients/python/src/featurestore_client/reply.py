"""A reply, decoded when asked for: as numpy columns, a matrix, Arrow, or Python values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.errors import MalformedReply, understood
from featurestore_client.values import Decoded, decode_columns
from featurestore_client.verdicts import Status

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST, _LAST = np.datetime64("0001-01-01T00:00:00.000000"), np.datetime64("9999-12-31T23:59:59.999999")
_NAMES = np.array(["", *(status.name for status in Status)], dtype=object)


class OnlineReply:
    """The features of the entities that were asked for, row by row, with a verdict per view and row.

    Arrays are views of what was received, several of them perhaps of one block: copy before writing to one.
    """

    def __init__(self, message: pb.GetOnlineFeaturesResponse, keys: Sequence[pb.Column] = ()) -> None:
        self.message, self._keys = message, keys

    def __len__(self) -> int:
        return self.message.rows

    @property
    def names(self) -> list[str]:
        """Names of the columns, in the order of the service; those of a matrix name the elements of vectors too."""
        if self.message.HasField("matrix"):
            return list(self.message.matrix.names)
        return self.to_arrow().column_names if self.message.arrow_ipc else [name for name, _, _ in self._decoded]

    @property
    def degraded_rows(self) -> int:
        """How many rows were STALE in some view."""
        return self.message.degraded_rows

    @property
    def served_at_us(self) -> int:
        """When the rows were judged, microseconds since the epoch."""
        return self.message.served_at_us

    @property
    def statuses(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a Status per row."""
        return {view.view: _per_row(view.statuses, "u1", len(self)) for view in self.message.views}

    @property
    def stale_reasons(self) -> dict[str, NDArray[np.uint8]]:
        """name@version of a view -> the number of a StaleReason per row, 0 where it is not STALE."""
        return {
            view.view: _per_row(view.stale_reasons or bytes(len(view.statuses)), "u1", len(self))
            for view in self.message.views
        }

    @property
    def event_timestamps(self) -> dict[str, NDArray[np.datetime64]]:
        """name@version of a view -> when each row was true, UTC; NaT where it was NOT_FOUND."""
        return {view.view: _event_timestamps(view, len(self)) for view in self.message.views}

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Name -> values. Null is NaN in floats, NaT in times, None among objects; `validity` tells for the others.

        Vectors are matrices; strings, bytes, lists and decimals are arrays of Python objects.
        """
        return {name: values for name, values, _ in self._decoded}

    def validity(self) -> dict[str, NDArray[np.bool_]]:
        """Name -> True where there is a value."""
        decoded = self._decoded
        everywhere = np.ones(len(self) if decoded else 0, np.bool_)
        return {name: everywhere if valid is None else valid for name, _, valid in decoded}

    def to_matrix(self) -> NDArray[np.float32]:
        """The matrix, a row per key; only from a reply in "matrix", since the server knows the fills."""
        if not self.message.HasField("matrix"):
            raise ValueError('the reply holds no matrix; ask with format="matrix"')
        return _matrix(self.message.matrix, len(self))

    def to_arrow(self) -> pa.Table:
        """The columns as an Arrow table, from a reply in "columns" or "arrow"; needs pyarrow."""
        import pyarrow as pa

        columns = () if self.message.arrow_ipc else self._columns()
        try:
            return _ipc_table(self.message.arrow_ipc) if self.message.arrow_ipc else _table(columns)
        except (pa.ArrowException, OSError) as error:
            raise MalformedReply(str(error)) from error

    def to_dict(self, *, statuses: bool = False, event_timestamps: bool = False) -> dict[str, list[Any]]:
        """Name -> Python values, the keys of the request first, as Feast gives it.

        For people and scripts, since it touches each value. On demand followed by `<view>__status` as text and
        `<view>__event_timestamp`; a view of which two versions were read is called name@version there.
        """
        keys = decode_columns(self._keys, self._keys[0].rows if self._keys else 0)
        answer = {name: _pythonic(values, valid) for name, values, valid in keys + self._decoded}
        for label, view in self._labelled():
            if statuses:
                answer[f"{label}__status"] = _status_names(view, len(self))
            if event_timestamps:
                answer[f"{label}__event_timestamp"] = _pythonic(_event_timestamps(view, len(self)), None)
        return answer

    @cached_property
    def _decoded(self) -> list[Decoded]:
        return understood(decode_columns)(self._columns(), len(self))

    def _columns(self) -> Sequence[pb.Column]:
        if self.message.arrow_ipc or self.message.HasField("matrix"):
            raise ValueError('the reply holds no columns; ask with format="columns"')
        return self.message.columns

    def _labelled(self) -> list[tuple[str, pb.ViewResult]]:
        names = [view.view.partition("@")[0] for view in self.message.views]
        return [
            (name if names.count(name) == 1 else view.view, view)
            for name, view in zip(names, self.message.views, strict=True)
        ]


@understood
def _per_row(data: bytes, dtype: str, rows: int) -> NDArray[Any]:
    values = np.frombuffer(data, dtype)
    if len(values) != rows:
        raise ValueError(f"verdicts on {len(values)} rows, where there are {rows}")
    return values


@understood
def _matrix(matrix: pb.Matrix, rows: int) -> NDArray[np.float32]:
    return np.frombuffer(matrix.values, "<f4").reshape(rows, len(matrix.names))


@understood
def _ipc_table(stream: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(stream).read_all()


@understood
def _table(columns: Sequence[pb.Column]) -> pa.Table:
    import pyarrow as pa

    from featurestore_client.arrow_columns import read_column

    return pa.table([read_column(column) for column in columns], names=[column.name for column in columns])


@understood
def _status_names(view: pb.ViewResult, rows: int) -> list[str]:
    names: list[str] = _NAMES[_per_row(view.statuses, "u1", rows)].tolist()
    return names


def _event_timestamps(view: pb.ViewResult, rows: int) -> NDArray[np.datetime64]:
    absent = _per_row(view.statuses, "u1", rows) == Status.NOT_FOUND
    times = _per_row(view.event_timestamps, "<M8[us]", rows)
    return np.where(absent, np.datetime64("NaT"), times) if absent.any() else times


@understood
def _pythonic(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> list[Any]:
    """A column as Python values: None for null, timestamps aware, elements of lists too."""
    if values.dtype.kind == "M" and bool(((values < _FIRST) | (values > _LAST)).any()):
        raise ValueError("a time beyond the years 1 to 9999")
    pieces = values.tolist()
    if values.dtype.kind == "O":
        pieces = [_pythonic(piece, None) if isinstance(piece, np.ndarray) else piece for piece in pieces]
    elif values.dtype == np.dtype("<M8[us]"):
        pieces = [None if piece is None else piece.replace(tzinfo=UTC) for piece in pieces]
    return pieces if valid is None else [piece if there else None for piece, there in zip(pieces, valid, strict=True)]
