"""signature.json beside a model's file: which features it was trained on. Written by `featurestore`, read by `Predict`.

To the sidecar it is a text with one value of interest, the signature.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ModelUnavailable
from featurestore.model_signature import FILE_NAME

#: The parameter of requests and metadata that carries it.
PARAMETER = "featurestore_signature"
BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class ModelSignature:
    """The document as it is written, and the signature of the feature service in it."""

    text: str
    signature: str


def read_signature(folder: Path) -> ModelSignature | None:
    """Of a version's folder; None where there is none. ModelUnavailable when it cannot be read."""
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} cannot be read: {error}; write it again") from error
    signature = document.get("signature") if isinstance(document, dict) else None
    if not isinstance(signature, str) or len(text) > BYTES_MAX:
        raise ModelUnavailable(f"{path} names no signature; write it again")
    return ModelSignature(text, signature)
