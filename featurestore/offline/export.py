"""Writes a training set and its manifest: complete, or not at all.

CSV as written here: null is an empty cell, the empty string is "", NaN is nan, infinities are inf and -inf, timestamps
are ISO 8601 in UTC with microseconds (2013-12-01 05:00:00.000000Z), bytes are base64, lists and vectors are JSON, and
every other value is its shortest exact text. Parquet and Arrow keep the types.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from featurestore.errors import InputError, StoreFull
from featurestore.offline.training_set import TrainingSet

MANIFEST_SUFFIX = ".manifest.json"
CSV_FORMAT = {
    "null": "an empty cell",
    "empty_string": '""',
    "nan": "nan",
    "timestamp": "ISO 8601, UTC, microseconds",
    "bytes": "base64",
    "list": "JSON",
}


def write_training_set(training_set: TrainingSet, path: Path) -> Path:
    """Write to `path` and `path` + .manifest.json; InputError for an unknown suffix, StoreFull without space."""
    write = WRITERS.get(path.suffix)
    if write is None:
        raise InputError(f"{path} has no known suffix; write to one of {', '.join(f'*{suffix}' for suffix in WRITERS)}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
    _replace(path, lambda part: write(training_set.table, part))
    manifest = {**training_set.manifest, "file": _described(path)}
    _replace(manifest_path(path), lambda part: _write_json(manifest, part))
    return path


def manifest_path(path: Path) -> Path:
    """Where the manifest of the training set at `path` lies."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then put the finished file in its place; a failure leaves what was there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as error:
        raise StoreFull(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        part.unlink(missing_ok=True)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    described: dict[str, Any] = {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
    return described | {"csv": CSV_FORMAT} if path.suffix == ".csv" else described


def _write_json(document: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _write_csv(table: pa.Table, path: Path) -> None:
    columns = {name: _csv_text(table.column(name)) for name in table.column_names}
    pa_csv.write_csv(pa.table(columns), path)


def _csv_text(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Columns that Arrow's writer cannot put into a cell, as text; text is made value by value, as CSV is."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        texts = [None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    if pa.types.is_nested(kind):
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".csv": _write_csv,
}
