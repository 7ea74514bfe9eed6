"""featurestore: the values a model was trained on are, bit for bit, the values it is served.

Importing this package is cheap: it loads the definition classes and nothing of any engine. The `FeatureStore`
facade is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.clock import FixedClock, ShiftedClock, SystemClock
from featurestore.dtypes import (
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)
from featurestore.entity import Entity
from featurestore.errors import FeatureStoreError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.source import FileSource, SqlSource
from featurestore.status import Status
from featurestore.view_rules import Condition, Reference, Volume

if TYPE_CHECKING:
    from featurestore.feature_store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "Bool",
    "Bytes",
    "Condition",
    "Date",
    "Decimal",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureView",
    "Field",
    "FileSource",
    "FixedClock",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "List",
    "Reference",
    "ShiftedClock",
    "SqlSource",
    "Status",
    "String",
    "SystemClock",
    "Timestamp",
    "Vector",
    "Volume",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "FeatureStore":
        from featurestore.feature_store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
