"""A repository that shows most of what one may declare: two entities, one with a composite key, created timestamps,
late and future rows, a row for quarantine, ttl, an alias, a fill, a request field, CSV in a folder and Parquet.

NOW is when it is looked at; the comments beside the rows say what each is for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.arrow_types import TIMESTAMP
from tests.fix_cli import prepare

NOW = "2024-05-02T12:00:00Z"
#: An integer that a float64 cannot hold.
LARGE = 2**53 + 1

SETTINGS = """\
project = "shop"

[registry]
wait_s = 2.0

[offline]
wait_s = 0.3
threads = 2
"""

ENTITIES = """\
from featurestore import Entity, Int32, Int64, String

customer = Entity(name="customer", join_keys={"customer_id": Int64}, owner="crm", description="Who buys.")
stock_item = Entity(name="stock_item", join_keys={"shop": String, "sku": Int32}, description="What lies where.")
"""

VIEWS = """\
from datetime import timedelta

from definitions.entities import customer, stock_item
from featurestore import FeatureView, Field, FileSource, Float32, Float64, Int32, String

spending = FeatureView(
    name="spending",
    entities=[customer],
    schema=[
        Field(name="total", dtype=Float64, ge=0, description="Paid so far."),
        Field(name="tier", dtype=String, allowed_values=["new", "gold"]),
    ],
    source=FileSource(path="sources/spending.parquet", timestamp_field="at", created_timestamp_column="known"),
    on_violation="quarantine",
    owner="crm",
)
stock = FeatureView(
    name="stock",
    entities=[stock_item],
    schema=[Field(name="left", dtype=Int32, ge=0), Field(name="price", dtype=Float32)],
    source=FileSource(path="sources/stock", timestamp_field="counted_at"),
    ttl=timedelta(days=1),
)
"""

SERVICES = """\
from definitions.views import spending, stock
from featurestore import FeatureService, Field, Int32

basket = FeatureService(
    name="basket",
    features=[spending[["total", "tier"]].alias(total="spent").fill(total=0.0), stock],
    request_fields=[Field(name="hour", dtype=Int32, nullable=False, ge=0, le=23)],
)
loyalty = FeatureService(name="loyalty", features=[spending])
"""

FILES = {
    "featurestore.toml": SETTINGS,
    "definitions/entities.py": ENTITIES,
    "definitions/views.py": VIEWS,
    "definitions/services.py": SERVICES,
    "sources/stock/a.csv": """\
shop,sku,counted_at,left,price
lisbon,7,2024-05-01T06:00:00Z,10,1.5
lisbon,8,2024-05-01T06:00:00Z,0,2.25
""",
    "sources/stock/b.csv": """\
shop,sku,counted_at,left,price
porto,7,2024-05-02T06:00:00Z,3,
""",
}


def at(text: str) -> datetime:
    """`01 09:30` as that time of May 2024, UTC."""
    return datetime.strptime(f"2024-05-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


SPENDING = [
    (1, at("01 08:00"), at("01 08:05"), 10.5, "new"),
    (1, at("01 10:00"), at("01 10:00"), 30.25, "gold"),
    (1, at("01 09:00"), at("01 15:00"), 20.0, "gold"),  # late: known long after a newer row
    (2, at("01 09:00"), at("01 11:00"), 5.0, None),
    (3, at("01 09:00"), at("03 09:00"), 1.0, "new"),  # not known before NOW
    (LARGE, at("01 07:00"), at("01 07:00"), 99.0, "new"),
    (2, at("01 12:00"), at("01 12:00"), -1.0, "new"),  # breaks its bound
]
SPENDING_SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("at", TIMESTAMP),
        ("known", TIMESTAMP),
        ("total", pa.float64()),
        ("tier", pa.string()),
    ]
)

SPINE = [
    (1, "lisbon", 7, 9, at("01 09:30")),
    (1, "lisbon", 7, 16, at("01 16:00")),
    (2, "porto", 7, 10, at("01 10:30")),
    (3, "porto", 7, 12, at("02 12:00")),
    (None, "lisbon", 8, 5, at("02 12:00")),
]
SPINE_SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("shop", pa.string()),
        ("sku", pa.int32()),
        ("hour", pa.int32()),
        ("as_of", TIMESTAMP),
    ]
)
#: (spent, tier, left, price) of each spine row, by the rules of time.
TRAINING = [
    (10.5, "new", 10, 1.5),
    (30.25, "gold", 10, 1.5),
    (None, None, None, None),
    (None, None, 3, None),
    (None, None, None, None),
]
#: The same where a row counts as known from its event time.
TRAINING_BY_EVENT = [
    (20.0, "gold", 10, 1.5),
    (30.25, "gold", 10, 1.5),
    (5.0, None, None, None),
    (1.0, "new", 3, None),
    (None, None, None, None),
]


def rows_table(rows: list, schema: pa.Schema) -> pa.Table:
    """Rows as a table."""
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def spine_table() -> pa.Table:
    """The spine."""
    return rows_table(SPINE, SPINE_SCHEMA)


def write_spending(folder: Path, rows: list) -> None:
    """(Over)write the Parquet source."""
    pq.write_table(rows_table(rows, SPENDING_SCHEMA), folder / "sources" / "spending.parquet")


def declare_shop(folder: Path) -> Path:
    """Write the repository, nothing applied yet."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_spending(folder, SPENDING)
    pq.write_table(spine_table(), folder / "spine.parquet")
    return folder


def make_shop(folder: Path) -> Path:
    """The repository, applied and materialized as of NOW."""
    declare_shop(folder)
    prepare(folder, "apply")
    prepare(folder, "materialize-incremental", "--now", NOW)
    return folder
