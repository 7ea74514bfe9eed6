"""What a service takes and gives, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb

OnStale = Literal["serve", "null", "fail"]

_ON_STALE: dict[int, OnStale] = {
    pb.ON_STALE_SERVE: "serve",
    pb.ON_STALE_NULL: "null",
    pb.ON_STALE_FAIL: "fail",
}


@dataclass(frozen=True, kw_only=True)
class JoinKey:
    """A key column that the request must bring, and the views (name@version) that are looked up by it."""

    name: str
    dtype: str
    views: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FieldDescription:
    """A column of the reply, or a request field (those have no `view`). `fill` stands in the matrix; None is NaN."""

    name: str
    dtype: str
    nullable: bool
    view: str
    field: str
    fill: float | None
    description: str


@dataclass(frozen=True, kw_only=True)
class ViewDescription:
    """A view behind the service. `ttl` None: rows never expire; `freshness` None: nothing is promised."""

    view: str
    ttl: timedelta | None
    freshness: timedelta | None


@dataclass(frozen=True, kw_only=True)
class ServiceDescription:
    """What a feature service takes and gives. `name` and `signature` are empty for a list of features.

    Types are written as in definitions (`float32`, `decimal(10,2)`, `vector<float32,8>`). `matrix_refusal` says why
    `format="matrix"` is refused, and is empty when it is not.
    """

    name: str
    join_keys: tuple[JoinKey, ...]
    request_fields: tuple[FieldDescription, ...]
    columns: tuple[FieldDescription, ...]
    views: tuple[ViewDescription, ...]
    on_stale: OnStale
    description: str
    matrix_refusal: str
    signature: str
    registry_revision: int

    @classmethod
    def from_message(cls, message: pb.DescribeServiceResponse) -> ServiceDescription:
        """The description in a reply."""
        return cls(
            name=message.service,
            join_keys=tuple(
                JoinKey(name=key.name, dtype=_dtype(key.type), views=tuple(key.views)) for key in message.join_keys
            ),
            request_fields=tuple(map(_field, message.request_fields)),
            columns=tuple(map(_field, message.columns)),
            views=tuple(map(_view, message.views)),
            on_stale=_ON_STALE[message.on_stale],
            description=message.description,
            matrix_refusal=message.matrix_refusal,
            signature=message.signature,
            registry_revision=message.registry_revision,
        )


def _field(message: pb.FieldDescription) -> FieldDescription:
    return FieldDescription(
        name=message.name,
        dtype=_dtype(message.type),
        nullable=message.nullable,
        view=message.view,
        field=message.field,
        fill=message.fill if message.HasField("fill") else None,
        description=message.description,
    )


def _view(message: pb.ViewDescription) -> ViewDescription:
    return ViewDescription(
        view=message.view,
        ttl=timedelta(microseconds=message.ttl_us) if message.HasField("ttl_us") else None,
        freshness=timedelta(microseconds=message.freshness_us) if message.HasField("freshness_us") else None,
    )


def _dtype(kind: pb.DataType) -> str:
    name = pb.TypeKind.Name(kind.kind).removeprefix("TYPE_KIND_").lower()
    match kind.kind:
        case pb.TYPE_KIND_DECIMAL:
            return f"decimal({kind.precision},{kind.scale})"
        case pb.TYPE_KIND_LIST:
            return f"list<{_dtype(kind.element)}>"
        case pb.TYPE_KIND_VECTOR:
            return f"vector<{_dtype(kind.element)},{kind.length}>"
    return name
