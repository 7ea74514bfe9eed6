"""Writes the served log of one worker: a bounded queue that never waits, and a thread that writes what stands in it.

Recording a reply costs the request one list append; sampling, digests and files are the thread's work, on columns of
all replies of a plan put together.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import TIMESTAMP
from featurestore.clock import SystemClock
from featurestore.errors import ConfigError, StoreError
from featurestore.online.keys import encode_keys, key_hash
from featurestore.online.order_keys import OrderKeys
from featurestore.served_log import SCHEMA, SEPARATOR, SUFFIX, part_digests
from featurestore.status import Status
from serving.plan import ServicePlan, ViewPlan
from serving.response import OnlineResponse

log = logging.getLogger(__name__)

#: Replies wait so long at most before they are written: what a killed worker loses.
FLUSH_S = 1.0
#: A log of `max_bytes` consists of so many files, since files are removed whole.
FILES = 16
_MIX = np.uint64(0x9E3779B97F4A7C15)

Record = Callable[[OnlineResponse], None]


@dataclass(frozen=True, kw_only=True)
class ServedLogOptions:
    """Where to write, which share of the reply rows, and the bounds of files and memory."""

    folder: Path
    sample: float
    max_bytes: int
    queue_rows: int


class ServedLog:
    """`record` may be called from any thread and never waits; `close` writes what stands in the queue."""

    def __init__(self, options: ServedLogOptions) -> None:
        """ConfigError when the folder cannot be made."""
        self._options = options
        self._files = LogFiles(options.folder, options.max_bytes)
        self._lock = threading.Lock()
        self._waiting: list[OnlineResponse] = []
        self._rows = self._dropped = self._replies = 0
        self._closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="served log", daemon=True)
        self._thread.start()

    def record(self, response: OnlineResponse) -> None:
        """Take a reply into the log; where the queue is full, its rows are counted as dropped."""
        with self._lock:
            if self._rows + response.rows > self._options.queue_rows:
                self._dropped += response.rows
                return
            self._waiting.append(response)
            self._rows += response.rows
            filling = self._rows > self._options.queue_rows // 2
        if filling:
            self._wake.set()

    def close(self) -> None:
        """Write what waits and end the file."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            self._flush()
        self._flush()
        with suppress(OSError, pa.ArrowException):  # a file without its end is read all the same
            self._files.close()

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting, self._rows = self._waiting, [], 0
            dropped, self._dropped = self._dropped, 0
        by_plan: dict[int, list[OnlineResponse]] = {}
        for response in waiting:
            by_plan.setdefault(id(response.plan), []).append(response)
        for responses in by_plan.values():
            records = partial(reply_records, responses, self._replies, self._options.sample)
            if self._written(records):
                self._replies += len(responses)
            else:
                dropped += sum(response.rows for response in responses)
        if dropped and not self._written(partial(_dropped_record, dropped)):
            with self._lock:
                self._dropped += dropped

    def _written(self, records: Callable[[], pa.Table]) -> bool:
        try:
            self._files.write(records())
        except (OSError, pa.ArrowException, StoreError) as error:
            log.warning("the served log cannot be written, its rows are dropped: %s", error)
            return False
        return True


@contextmanager
def recording(options: ServedLogOptions | None) -> Iterator[Record | None]:
    """What records replies for the block; None where nothing is to be recorded."""
    if options is None:
        yield None
        return
    served = ServedLog(options)
    try:
        yield served.record
    finally:
        served.close()


# ------------------------------------------------------------------ records


def reply_records(responses: Sequence[OnlineResponse], first: int, sample: float) -> pa.Table:
    """The records of the sampled rows of replies of one plan, view by view; replies are numbered from `first`."""
    plan = responses[0].plan
    lengths = np.array([response.rows for response in responses])
    sampled = _sampled(plan, _keys(responses), int(lengths.sum()), sample)
    reply = np.repeat(np.arange(len(responses)), lengths)
    row = np.arange(len(reply)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # Most replies of a few rows hold none that is sampled: their columns are not touched.
    kept = np.bincount(reply[sampled], minlength=len(responses)) > 0
    chosen = np.flatnonzero(sampled[kept[reply]])
    responses = [responses[place] for place in np.flatnonzero(kept).tolist()]
    if not responses:
        return SCHEMA.empty_table()
    served_us = np.repeat([response.served_at_us for response in responses], lengths[kept])[chosen]
    common = {
        "served_at": pa.array(served_us).cast(TIMESTAMP),
        "reply": pa.array((reply[sampled] + first).astype(np.uint64)),
        "row": pa.array(row[sampled].astype(np.uint32)),
        "service": _same(plan.name, len(chosen)),
        "signature": _same(plan.signature, len(chosen)),
    }
    keys = {name: column.take(pa.array(chosen)) for name, column in _keys(responses).items()}
    return pa.concat_tables(
        [_table(common | _view_records(responses, place, keys, chosen)) for place in range(len(plan.views))]
    )


def _keys(responses: Sequence[OnlineResponse]) -> dict[str, pa.Array]:
    return {
        name: pa.concat_arrays([response.keys[name] for response in responses]) for name in responses[0].plan.join_keys
    }


def _view_records(
    responses: Sequence[OnlineResponse], place: int, keys: dict[str, pa.Array], chosen: NDArray[np.int64]
) -> dict[str, pa.Array]:
    plan = responses[0].plan
    view = plan.views[place]
    verdicts = [response.views[place] for response in responses]
    statuses, reasons, event_us, created_us, sequence = (
        np.concatenate(columns)[chosen]
        for columns in zip(
            *((v.statuses, v.reasons, v.order.event_us, v.order.created_us, v.order.sequence) for v in verdicts),
            strict=True,
        )
    )
    absent = (statuses == Status.NOT_FOUND) | (statuses == Status.ERROR)
    columns = [
        pa.concat_arrays([response.columns[at] for response in responses]).take(pa.array(chosen))
        for at in _columns_of(plan, place)
    ]
    return {
        "view": _same(view.ref, len(chosen)),
        "fields": _same(SEPARATOR.join(field.name for field in view.fields), len(chosen)),
        "key": encode_keys([keys[name] for name in view.join_keys], view.key_types),
        "status": pa.array(statuses),
        "stale_reason": pa.array(reasons),
        "event_timestamp": pa.array(event_us, mask=absent).cast(TIMESTAMP),
        "created_timestamp": pa.array(created_us, mask=absent).cast(TIMESTAMP),
        "sequence": pa.array(sequence, mask=absent),
        "digest": part_digests(view.fields, OrderKeys(event_us, created_us, sequence), columns),
    }


def _columns_of(plan: ServicePlan, place: int) -> list[int]:
    """Which columns of a reply hold the fields of a view, in the order of its fields."""
    view: ViewPlan = plan.views[place]
    return [plan.places.index((place, field)) for field in range(len(view.fields))]


def _sampled(plan: ServicePlan, keys: dict[str, pa.Array], rows: int, sample: float) -> NDArray[np.bool_]:
    """Which rows are sampled: those whose keys hash below the share, the same entities in every worker and run."""
    if sample >= 1:
        return np.ones(rows, dtype=bool)
    hashes, known = np.zeros(rows, dtype=np.uint64), np.ones(rows, dtype=bool)
    for name in sorted(keys):
        encoded = encode_keys([keys[name]], [plan.join_keys[name]])
        hashes = hashes * _MIX + key_hash(encoded)
        known &= encoded.is_valid().to_numpy(zero_copy_only=False)
    sampled: NDArray[np.bool_] = known & (hashes < np.uint64(sample * 2.0**64))
    return sampled


def _same(value: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), count)


def _dropped_record(rows: int) -> pa.Table:
    return _table({"dropped": pa.array([rows], pa.uint64())})


def _table(columns: dict[str, pa.Array]) -> pa.Table:
    """The columns as records; those that are not given are null."""
    rows = len(next(iter(columns.values())))
    return pa.table([columns.get(f.name, pa.nulls(rows, f.type)) for f in SCHEMA], schema=SCHEMA)


# ------------------------------------------------------------------ files


class LogFiles:
    """The files of one worker in a folder that all workers share; the oldest of the folder go when it is full."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes, self._file_bytes = folder, max_bytes, max_bytes // FILES
        self._path: Path | None = None
        self._sink: pa.NativeFile | None = None
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"served_log.path {folder} cannot be made ({error.strerror}); set another") from error

    def write(self, records: pa.Table) -> None:
        """Append records; OSError, after which a new file is begun: the end of this one may be half a batch."""
        if records.num_rows == 0:
            return
        try:
            if self._sink is not None and self._sink.tell() > self._file_bytes:
                self.close()
            if self._writer is None:
                self._begin()
            assert self._writer is not None
            self._writer.write_table(records.combine_chunks())
        except (OSError, pa.ArrowException):
            self._sink = self._writer = None
            raise

    def close(self) -> None:
        """End the file, if there is one."""
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()
        self._sink = self._writer = None

    def _begin(self) -> None:
        now = SystemClock().now().strftime("%Y%m%dT%H%M%S%f")
        self._path = self._folder / f"served-{now}-{os.getpid()}{SUFFIX}"
        self._make_room()
        self._sink = pa.OSFile(str(self._path), "wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_stream(self._sink, SCHEMA, options=options)

    def _make_room(self) -> None:
        """Names begin with the time, so their order is that of age."""
        sizes = {path: path.stat().st_size for path in sorted(self._folder.glob(f"served-*{SUFFIX}"))}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total + self._file_bytes <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
