"""signature.json beside a model: the features it was trained on, column by column, so that none other reach it.

    {"format": 1, "feature_service": name, "signature": sha256, "fields": [...], "fill": {name: number},
     "outputs": [{"name", "datatype", "shape"}], "manifest_digest": sha256}

`fields` are the columns of the service in the matrix's order, request fields last, as `model_fields` gives them. A fill
of null is NaN, which JSON does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.fingerprint import service_signature, signature_document
from featurestore.outputs import service_outputs
from featurestore.registry.document import encode_fill
from featurestore.whole_files import write_whole

FILE_NAME = "signature.json"
FORMAT = 1
#: What a message tells of the differences.
TOLD_MAX = 10


@dataclass(frozen=True)
class ModelOutput:
    """One output of a model: its type as the Open Inference Protocol names it, -1 for sizes that vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSignature:
    """What a model was trained on, and what it gives."""

    feature_service: str
    signature: str
    fields: tuple[Mapping[str, Any], ...]
    #: Column of the service -> what stands in the matrix where it has no value.
    fill: Mapping[str, float]
    outputs: tuple[ModelOutput, ...]
    #: The content digest of the training set.
    manifest_digest: str

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        fill = {name: None if math.isnan(value) else encode_fill(value) for name, value in self.fill.items()}
        return {"format": FORMAT} | asdict(self) | {"fill": fill}


def sign(
    service: FeatureService, views: Mapping[str, FeatureView], outputs: Sequence[ModelOutput], manifest_digest: str
) -> ModelSignature:
    """The signature of a model that was trained on a service as it is in `views` (by ref)."""
    columns = service_outputs(service, views)
    return ModelSignature(
        feature_service=service.name,
        signature=service_signature(service, views),
        fields=tuple(model_fields(service, views)),
        fill={column.name: math.nan if column.fill is None else column.fill for column in columns},
        outputs=tuple(outputs),
        manifest_digest=manifest_digest,
    )


def write_signature(signature: ModelSignature, folder: Path) -> Path:
    """Write it into a version's folder, whole or not at all; InputError when that cannot be written."""
    path = folder / FILE_NAME
    text = json.dumps(signature.document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_whole({path: text})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name the folder DIR/MODEL/VERSION") from error
    return path


def read_signature(folder: Path) -> ModelSignature:
    """The signature in a version's folder; InputError when there is none, or it is of another form."""
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}; `featurestore sign-model` writes it from a manifest") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; write it again with `featurestore sign-model`") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path} is no signature of format {FORMAT}; write it again with `featurestore sign-model`")
    try:
        return _from(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} lacks a part or has one of another form ({error}); write it again with `featurestore sign-model`"
        ) from error


def _from(document: Mapping[str, Any]) -> ModelSignature:
    return ModelSignature(
        feature_service=str(document["feature_service"]),
        signature=str(document["signature"]),
        fields=tuple(dict(field) for field in document["fields"]),
        fill={name: math.nan if value is None else float(value) for name, value in document["fill"].items()},
        outputs=tuple(
            ModelOutput(str(output["name"]), str(output["datatype"]), tuple(map(int, output["shape"])))
            for output in document["outputs"]
        ),
        manifest_digest=str(document["manifest_digest"]),
    )


def misfit(
    model: str, document: Mapping[str, Any], service: FeatureService, views: Mapping[str, FeatureView]
) -> str | None:
    """Why a model with this signature document may not see a service's features, field by field; None: it may."""
    if document.get("signature") == service_signature(service, views):
        return None
    fields = document.get("fields")
    told = differences(fields if isinstance(fields, list | tuple) else (), model_fields(service, views))
    return (
        f"model {model!r} was trained on feature service {document.get('feature_service')!r} of another signature "
        f"than feature service {service.name!r} has now: {'; '.join(told[:TOLD_MAX]) or 'the rule of the cast'}"
        f"{f' and {len(told) - TOLD_MAX} more' if len(told) > TOLD_MAX else ''}; train it on this service, or serve "
        "the one it was trained on"
    )


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
