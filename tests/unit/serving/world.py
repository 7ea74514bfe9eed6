"""A small world to look things up in: two airports, their routes, and a view that holds every type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as Number
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore import (
    Bool,
    Bytes,
    Date,
    Decimal,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    FixedClock,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.arrow_types import arrow_type
from featurestore.clock import to_us
from featurestore.online.base import OnlineStore
from featurestore.online.keys import encode_keys
from featurestore.online.row_codec import OrderKeys, RowEncoder
from featurestore.registry.definitions import Definitions
from serving.lookup import OnlineLookup
from serving.plan import compile_plan

NOW = datetime(2013, 12, 1, 12, tzinfo=UTC)
NOW_US = to_us(NOW)
CLOCK = FixedClock(NOW)
HOUR_US = 3_600_000_000
SOURCE = FileSource(path="rows.parquet", timestamp_field="time")

airport = Entity(name="airport", join_keys={"origin": String})
route = Entity(name="route", join_keys={"origin": String, "number": Int32})
thing = Entity(name="thing", join_keys={"id": Int64})

weather = FeatureView(
    name="weather",
    entities=[airport],
    schema=[
        Field(name="temp", dtype=Float32),
        Field(name="wind", dtype=Float64),
        Field(name="sky", dtype=String, allowed_values=["clear", "cloudy", "rain"]),
    ],
    source=SOURCE,
    ttl=timedelta(hours=2),
)
delays = FeatureView(
    name="delays",
    entities=[route],
    schema=[Field(name="delay", dtype=Int32), Field(name="busy", dtype=Bool), Field(name="temp", dtype=Float32)],
    source=SOURCE,
    freshness=timedelta(hours=6),
    version=2,
)

EVERY_TYPE: list[tuple[Field, list[object]]] = [
    (Field(name="bool_", dtype=Bool), [True, False, None, True, False]),
    (Field(name="int32_", dtype=Int32), [1, -(2**31), None, 2**31 - 1, 0]),
    (Field(name="int64_", dtype=Int64), [2**53 + 1, -(2**63), None, 2**63 - 1, 0]),
    (Field(name="float32_", dtype=Float32), [1.5, -0.0, None, float("nan"), float("inf")]),
    (Field(name="float64_", dtype=Float64), [0.1, -0.0, None, float("nan"), float("-inf")]),
    (Field(name="string_", dtype=String), ["a", "", None, "ü€𝄞", "a\nb"]),
    (Field(name="bytes_", dtype=Bytes), [b"\x00\xff", b"", None, b"a", b"\x00"]),
    (Field(name="timestamp_", dtype=Timestamp), [NOW, datetime(1, 1, 1, tzinfo=UTC), None, NOW, NOW]),
    (Field(name="date_", dtype=Date), [date(2013, 2, 28), date(1, 1, 1), None, date(9999, 12, 31), date(1970, 1, 1)]),
    (
        Field(name="decimal_", dtype=Decimal(38, 4)),
        [Number("1.2345"), Number(-(10**33)), None, Number(0), Number(-1)],
    ),
    (Field(name="ints", dtype=List(Int64)), [[1, 2], [], None, [3], [-1, 2**62]]),
    (Field(name="bools", dtype=List(Bool)), [[True] * 9, [], None, [False], [True, False]]),
    (Field(name="texts", dtype=List(String)), [["a", ""], [], None, ["ü"], ["bc"] * 3]),
    (Field(name="blobs", dtype=List(Bytes)), [[b"\x00"], [], None, [b"", b""], [b"x"]]),
    (Field(name="vector_", dtype=Vector(Float32, 3)), [[1, 2, 3], [0, 0, 0], None, [4, 5, 6], [7, 8, 9]]),
    (Field(name="flags", dtype=Vector(Bool, 3)), [[True] * 3, [False] * 3, None, [True, False, True], [False] * 3]),
]
everything = FeatureView(name="everything", entities=[thing], schema=[f for f, _ in EVERY_TYPE], source=SOURCE)
VALUES = {declared.name: values for declared, values in EVERY_TYPE}
THINGS = list(range(5))

airport_now = FeatureService(name="airport_now", features=[weather])
departures = FeatureService(
    name="departures",
    features=[weather[["temp", "wind"]].fill(wind=-1.0), delays[["delay", "temp"]].alias(temp="delay_temp")],
    request_fields=[Field(name="hour", dtype=Int32, ge=0, le=23, nullable=False)],
)
all_types = FeatureService(name="all_types", features=[everything])

DEFINITIONS = Definitions(
    entities={entity.name: entity for entity in (airport, route, thing)},
    views={view.ref: view for view in (weather, delays, everything)},
    services={service.name: service for service in (airport_now, departures, all_types)},
)


@dataclass
class World:
    """An online store that holds what was put there, and the watermarks that a test has set."""

    store: OnlineStore
    watermarks: dict[str, int | None] = field(default_factory=dict)

    def watermark_us(self, ref: str) -> int | None:
        """The watermark that the test has set."""
        return self.watermarks.get(ref)

    def put(
        self,
        view: FeatureView,
        keys: Mapping[str, Sequence[object]],
        columns: Mapping[str, Any],
        event_us: Sequence[int] | int = NOW_US,
        schema_id: int = 1,
    ) -> None:
        """Store a row for each key, as a publish would."""
        arrays = [pa.array(columns[declared.name], arrow_type(declared.dtype)) for declared in view.schema]
        times = np.broadcast_to(np.array(event_us, np.int64), len(arrays[0])).copy()
        order = OrderKeys(event_us=times, created_us=times, sequence=np.arange(1, len(times) + 1))
        rows = RowEncoder(schema_id, view.schema).encode(order, arrays)
        key_arrays = [pa.array(keys[name], arrow_type(dtype)) for name, dtype in view.join_keys.items()]
        self.store.write(view.ref, encode_keys(key_arrays, list(view.join_keys.values())), rows)

    def lookup(self, service: FeatureService) -> OnlineLookup:
        """What answers for the service, at NOW."""
        schemas = {ref: {1: view.schema} for ref, view in DEFINITIONS.views.items()}
        return OnlineLookup(compile_plan(service, DEFINITIONS.views, schemas), self.store, CLOCK, self)


def key_arrays(**keys: Sequence[object]) -> dict[str, pa.Array]:
    """Key columns, in the types that Python values have in Arrow."""
    return {name: pa.array(values) for name, values in keys.items()}


def matches_bits(actual: pa.Array, expected: pa.Array) -> bool:
    """Whether two columns hold the same bits: NaN equals itself and differs from null, -0.0 differs from 0.0."""
    if actual.type != expected.type or len(actual) != len(expected):
        return False
    if pa.types.is_floating(actual.type):
        integers = pa.int32() if actual.type == pa.float32() else pa.int64()
        actual, expected = actual.view(integers), expected.view(integers)
    return bool(actual.equals(expected))
