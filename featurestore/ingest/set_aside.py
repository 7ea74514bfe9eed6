"""Rows that the gate refuses, as quarantine keeps them: what the source said, and why, where and by whom judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.feature_view import FeatureView
from featurestore.fingerprint import definition_fingerprint
from featurestore.ingest.raw_rows import form_of, raw_texts
from featurestore.ingest.source_batch import SourceBatch
from featurestore.offline.quarantine import QUARANTINE_SCHEMA

#: A row whose text is longer is kept without it: cut short it would say something else.
RAW_BYTES_MAX = 1 << 20
ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgements:
    """Why rows are refused: of each its place in the batch, and rule, field and reason of its first breach."""

    places: NDArray[np.int64]
    rules: Sequence[str]
    fields: Sequence[str]
    reasons: Sequence[str]


def set_aside(view: FeatureView, run: str, at_us: int, batch: SourceBatch, judged: Judgements) -> pa.Table:
    """The refused rows in the shape of the quarantine table; who writes them gives them their sequences."""
    rows = batch.rows.take(pa.array(judged.places))
    form = form_of(rows, text=batch.text)
    raws = raw_texts(rows)
    kept = [len(raw) <= RAW_BYTES_MAX for raw in raws]
    ids = [_id(view.ref, form, raw) for raw in raws]
    reasons = [
        reason if fits else f"{reason}; the row itself, {len(raw):,} bytes as text, is too long to be kept"
        for reason, raw, fits in zip(judged.reasons, raws, kept, strict=True)
    ]
    count = len(raws)
    columns = {
        "view": pa.repeat(view.ref, count),
        "id": pa.array(ids, pa.string()),
        "sequence": pa.repeat(pa.scalar(0, pa.int64()), count),
        "definition": pa.repeat(definition_fingerprint(view), count),
        "run": pa.repeat(run, count),
        "rule": pa.array(judged.rules, pa.string()),
        "field": pa.array(judged.fields, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "source": pa.repeat(batch.source, count),
        "source_row": pa.array(batch.row_numbers[judged.places]),
        "raw": pa.array([raw if fits else "" for raw, fits in zip(raws, kept, strict=True)], pa.string()),
        "raw_form": pa.array([form if fits else "" for fits in kept], pa.string()),
        "quarantined_at": pa.repeat(pa.scalar(at_us, pa.int64()), count).cast(pa.timestamp("us", "UTC")),
    }
    return pa.table(columns).cast(QUARANTINE_SCHEMA)


def _id(ref: str, form: str, raw: str) -> str:
    """Equal for rows of a view that say the same, wherever they come from."""
    return hashlib.sha256("\n".join((ref, form, raw)).encode()).hexdigest()[:ID_DIGITS]
