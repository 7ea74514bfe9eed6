"""The served log as files: what clients received, a record for each sampled reply row and view (docs/served-log.md).

Written by each serving worker, read by `verify --served`. A file is an Arrow IPC stream, so one that was cut off is
readable up to its last whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arrow_types import TIMESTAMP
from featurestore.errors import InputError
from featurestore.field import Field
from featurestore.online.keys import SECOND_SEED, key_hash
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_encoder import RowEncoder

SUFFIX = ".arrows"
#: Between the names in `fields`; a field's name has none.
SEPARATOR = ","
_VERSION = {b"featurestore.served_log": b"1"}

#: `reply` numbers the replies of a worker, `row` the rows of a reply. `fields` are those of `view` that it shows,
#: and `digest` is that of their values. Times and sequence are the stored row's, null where none was found. A record
#: without a view says that so many reply rows were `dropped` before it.
SCHEMA = pa.schema(
    [
        ("served_at", TIMESTAMP),
        ("reply", pa.uint64()),
        ("row", pa.uint32()),
        ("service", pa.string()),
        ("signature", pa.string()),
        ("view", pa.string()),
        ("fields", pa.string()),
        ("key", pa.binary()),
        ("status", pa.uint8()),
        ("stale_reason", pa.uint8()),
        ("event_timestamp", TIMESTAMP),
        ("created_timestamp", TIMESTAMP),
        ("sequence", pa.int64()),
        ("digest", pa.binary(16)),
        ("dropped", pa.uint64()),
    ],
    metadata=_VERSION,
)


def part_digests(fields: Sequence[Field], order: OrderKeys, columns: Sequence[pa.Array]) -> pa.Array:
    """The digest of each line of `columns`, one a field, with the order key of the row it shows: 128 bits."""
    rows = RowEncoder(0, fields).encode(order, columns)
    digests = np.stack([key_hash(rows), key_hash(rows, SECOND_SEED)], axis=1)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(digests)])


@dataclass(kw_only=True)
class ReadLog:
    """What reading a log came upon."""

    files: int = 0
    #: Files whose end is missing or damaged: what stands before it was read.
    cut: int = 0
    #: Reply rows that were not recorded, since the queue was full.
    dropped: int = 0


def read_served_log(path: Path, read: ReadLog) -> Iterator[pa.Table]:
    """The records of a log file, or of all in a folder, batch by batch; counts into `read` what is beside them."""
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no served log (*{SUFFIX}); name the folder that served_log.path sets")
    for file in files:
        read.files += 1
        for batch in _batches(file, read):
            marks = batch.column("dropped").drop_null()
            read.dropped += int(np.sum(marks.to_numpy(), dtype=np.uint64))
            records = pa.Table.from_batches([batch])
            yield records.filter(batch.column("view").is_valid()) if len(marks) else records


def records_of(records: Iterator[pa.Table], service: str | None) -> Iterator[pa.Table]:
    """The records of one service, or all."""
    for table in records:
        yield table if service is None else table.filter(pc.equal(table.column("service"), service))


def _batches(path: Path, read: ReadLog) -> Iterator[pa.RecordBatch]:
    try:
        path.open("rb").close()  # Arrow's own message is for programmers
        source = pa.memory_map(str(path))
    except OSError as error:
        raise InputError(f"served log {path} cannot be read: {error.strerror or error}") from error
    with source:
        if not _begins_as_stream(source):
            raise InputError(f"{path} is no served log; name a file or folder that `serve` has written")
        try:
            with pa.ipc.open_stream(source) as stream:
                if (stream.schema.metadata or {}) != _VERSION or stream.schema != SCHEMA:
                    raise InputError(f"{path} is no served log of this release; read it with the one that wrote it")
                while True:
                    batch = stream.read_next_batch()
                    batch.validate(full=True)
                    yield batch
        except StopIteration:
            read.cut += not _ends_as_stream(source)
        except (OSError, pa.ArrowInvalid):
            read.cut += 1


def _begins_as_stream(source: pa.NativeFile) -> bool:
    """A file that was cut off within its first bytes may be one too."""
    begins: bytes = source.read(4)
    source.seek(0)
    return begins == b"\xff" * len(begins)


def _ends_as_stream(source: pa.NativeFile) -> bool:
    """A stream that was closed ends with a mark; a file cut between two batches has none, and still served on."""
    if source.size() < 8:
        return False
    source.seek(source.size() - 8)
    return bool(source.read(8) == b"\xff\xff\xff\xff\x00\x00\x00\x00")
