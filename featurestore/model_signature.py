"""signature.json beside a model: the features it was trained on, column by column, so that none other reach it.

    {"format": 1, "feature_service": name, "signature": sha256, "fields": [...], "fill": {name: number},
     "outputs": [...], "manifest_digest": sha256}

`fields` are the columns of the service in the matrix's order, request fields last, as `model_fields` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.fingerprint import signature_document

FILE_NAME = "signature.json"
FORMAT = 1


def model_fields(service: FeatureService, views: Mapping[str, FeatureView]) -> list[dict[str, Any]]:
    """What a model binds to of each column: name, dtype, and where they apply view, field, fill, ttl_us, values."""
    document = signature_document(service, views)
    return [*document["columns"], *document["request"]]


def differences(theirs: Sequence[Any], ours: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each difference between the fields of a model and those of a service, in words."""
    known = {field["name"]: field for field in theirs if isinstance(field, dict) and "name" in field}
    served = {field["name"]: field for field in ours}
    told = [f"{name} is gone" for name in known if name not in served]
    told += [f"{name} is new" for name in served if name not in known]
    for name, field in served.items():
        before = known.get(name, field)
        told += [
            f"{name}: {part} was {before.get(part)!r} and is {field.get(part)!r}"
            for part in sorted({*before, *field})
            if before.get(part) != field.get(part)
        ]
    if not told and list(known) != list(served):
        told.append(f"the order was {', '.join(known)} and is {', '.join(served)}")
    return told
