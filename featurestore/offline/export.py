"""Writes a training set and its manifest: complete, or not at all.

CSV as written here: null is an empty cell, the empty string is "", NaN is nan, infinities are inf and -inf, timestamps
are ISO 8601 in UTC with microseconds (2013-12-01 05:00:00.000000Z), bytes are base64, lists and vectors are JSON (in
which NaN, Infinity and -Infinity stand for themselves), and every other value is its shortest exact text. Parquet and
Arrow keep the types.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from featurestore.errors import InputError, StoreFull
from featurestore.offline.training_set import TrainingSet

#: Opens a file for tables of a schema.
Opened = Callable[[Path, pa.Schema], AbstractContextManager[Callable[[pa.Table], None]]]

MANIFEST_SUFFIX = ".manifest.json"
CSV_FORMAT = {
    "null": "an empty cell",
    "empty_string": '""',
    "nan": "nan",
    "timestamp": "ISO 8601, UTC, microseconds",
    "bytes": "base64",
    "infinity": "inf, -inf",
    "list": "JSON, with NaN, Infinity and -Infinity",
}


def write_training_set(training_set: TrainingSet, path: Path) -> Path:
    """Write to `path` and `path` + .manifest.json; InputError for an unknown suffix, StoreFull without space."""
    opened = _writer(path)
    if manifest_path(path).is_dir() or path.is_dir():
        raise InputError(f"{path} or its manifest is a folder; name another file")
    data, manifest = _part(path), _part(manifest_path(path))
    with _or_nothing(path, data, manifest):
        with opened(data, training_set.table.schema) as write:
            write(training_set.table)
        spine = _spine_beside(training_set.manifest["spine"], path)
        written = {**training_set.manifest, "spine": spine, "file": _described(data, path.name)}
        _write_json(written, manifest)
        for part in (data, manifest):
            _flush(part)
        # Both are complete; only now do they take their places, so that a failure leaves the old pair.
        data.replace(path)
        manifest.replace(manifest_path(path))
    return path


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """What writes table after table of one schema, as a training set is written, without a manifest; the file takes its
    place when all are written. The same errors."""
    opened, data = _writer(path), _part(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name another file")
    with _or_nothing(path, data):
        with opened(data, schema) as write:
            yield write
        _flush(data)
        data.replace(path)


def _writer(path: Path) -> Opened:
    opened = WRITERS.get(path.suffix)
    if opened is None:
        raise InputError(f"{path} has no known suffix; write to one of {', '.join(f'*{suffix}' for suffix in WRITERS)}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")
    return opened


@contextmanager
def _or_nothing(path: Path, *parts: Path) -> Iterator[None]:
    """Failures as errors of ours; what was written of the parts is removed."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = StoreFull if full else InputError
        raise kind(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot hold these columns: {error}; write to another format, or drop them") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def file_differences(recorded: Mapping[str, Any], manifest: Path) -> list[str]:
    """What the file beside a manifest has otherwise than recorded; none when it is gone, as it may live elsewhere."""
    beside = manifest.with_name(recorded["file"]["name"])
    if not beside.exists() or _described(beside, beside.name)["sha256"] == recorded["file"]["sha256"]:
        return []
    return [f"{beside.name}, beside the manifest, is not the file that was written"]


def _spine_beside(spine: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The recorded spine with its path as seen from the manifest, so that both can be moved together."""
    if spine["path"] is None:
        return spine
    return {**spine, "path": Path(os.path.relpath(spine["path"], path.parent)).as_posix()}


def manifest_path(path: Path) -> Path:
    """Where the manifest of the training set at `path` lies."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _flush(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _described(file: Path, name: str) -> dict[str, Any]:
    with file.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    described: dict[str, Any] = {"name": name, "bytes": file.stat().st_size, "sha256": digest}
    return described | {"csv": CSV_FORMAT} if name.endswith(".csv") else described


def _write_json(document: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_table


@contextmanager
def _arrow(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        yield writer.write_table


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    with pa_csv.CSVWriter(path, _csv_texts(schema.empty_table()).schema) as writer:
        yield lambda table: writer.write_table(_csv_texts(table))


def _csv_texts(table: pa.Table) -> pa.Table:
    return pa.table({name: _csv_text(table.column(name)) for name in table.column_names})


def _csv_text(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Columns that Arrow's writer cannot put into a cell, as text; text is made value by value, as CSV is."""
    kind = column.type
    if any(test(kind) for test in _BYTES):
        texts = [None if value is None else _as_text(value) for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    if pa.types.is_nested(kind):
        texts = [
            None if value is None else json.dumps(value, default=_as_text, ensure_ascii=False)
            for value in column.to_pylist()
        ]
        return pa.array(texts, pa.string())
    return column


_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def _as_text(value: Any) -> str:
    """A value within a list as it stands in a cell of its own."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case datetime():
            utc = value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
            return utc.isoformat(" ", "microseconds") + ("" if value.tzinfo is None else "Z")
        case _:
            return str(value)


WRITERS: dict[str, Opened] = {".parquet": _parquet, ".arrow": _arrow, ".csv": _csv}
