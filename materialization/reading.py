"""What a load reads: which files, which event times, and what it remembers of it afterwards.

Incremental loads read a source by arrival: files that are new or changed (by path, size and digest), and of a query
the rows that became known since the last time. A row that is 30 days late in a source already loaded arrives with the
next incremental run, since its file has changed or its created timestamp is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurestore.clock import timedelta_us
from featurestore.feature_view import FeatureView
from featurestore.ingest.load import WindowedBatch
from featurestore.ingest.source_batch import RowWindow
from featurestore.offline.sources import SourceFile, read_files, read_sql, source_files
from featurestore.registry.document import canonical_json, source_document
from featurestore.source import FileSource, SqlSource


@dataclass(frozen=True, kw_only=True)
class FileCursor:
    """A file as it was last read, up to event time `until_us` (None: all of it)."""

    size: int
    digest: str
    until_us: int | None


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How far a source was read. `in_flight` names a load that has begun: {"reads": digest, "load_id": id}."""

    files: dict[str, FileCursor] = field(default_factory=dict)
    source: str = ""
    newest_event_us: int | None = None
    newest_created_us: int | None = None
    until_us: int | None = None
    in_flight: dict[str, str] | None = None

    @staticmethod
    def from_json(document: dict[str, Any] | None) -> Cursor:
        """A cursor as the state store keeps it; an empty one when nothing was ever read."""
        if document is None:
            return Cursor()
        files = {name: FileCursor(**state) for name, state in document["files"].items()}
        return Cursor(**{**document, "files": files})

    def to_json(self) -> dict[str, Any]:
        """The form the state store keeps."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FileRead:
    """A file to read, and which of its rows."""

    file: SourceFile
    window: RowWindow


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A planned read of a view's source. `files` is empty for a query, `query_window` None when it is not run."""

    view: FeatureView
    repository: Path
    batch_rows: int
    files: tuple[FileRead, ...] = ()
    query_window: RowWindow | None = None
    present: tuple[SourceFile, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to read."""
        return not self.files and self.query_window is None

    @property
    def digest(self) -> str:
        """Equal for two reads that give the same batches, so that one can resume the other."""
        reads = [(read.file.name, read.file.digest, asdict(read.window)) for read in self.files]
        window = None if self.query_window is None else asdict(self.query_window)
        inputs = [(file.name, file.digest) for file in self.present]
        document = {
            "view": self.view.ref,
            "fields": list(self.view.fields),
            "source": source_document(self.view.source),
            "reads": reads,
            "window": window,
            "inputs": inputs,
            "batch_rows": self.batch_rows,
        }
        return hashlib.sha256(canonical_json(document)).hexdigest()

    def batches(self) -> Iterator[WindowedBatch]:
        """The batches, always the same ones in the same order."""
        if isinstance(self.view.source, SqlSource):
            if self.query_window is not None:
                for batch in read_sql(self.view.source, self.repository, self.batch_rows):
                    yield WindowedBatch(batch=batch, window=self.query_window)
            return
        for read in self.files:
            for batch in read_files([read.file], self.batch_rows):
                yield WindowedBatch(batch=batch, window=read.window)


def whole_window(view: FeatureView, repository: Path, batch_rows: int, window: RowWindow) -> Reading:
    """Everything the source holds in a window of event times."""
    present = tuple(source_files(view.source, repository))
    if isinstance(view.source, FileSource):
        reads = tuple(FileRead(file=file, window=window) for file in present)
        return Reading(view=view, repository=repository, batch_rows=batch_rows, files=reads, present=present)
    return Reading(view=view, repository=repository, batch_rows=batch_rows, query_window=window, present=present)


def arrivals(view: FeatureView, repository: Path, batch_rows: int, cursor: Cursor, end_us: int | None) -> Reading:
    """What arrived since `cursor`, event times before `end_us` (None: all)."""
    present = tuple(source_files(view.source, repository))
    known = cursor if cursor.source == source_key(view) else Cursor()
    if isinstance(view.source, FileSource):
        windows = ((file, _file_window(known.files.get(file.name), file, end_us)) for file in present)
        reads = tuple(FileRead(file=file, window=window) for file, window in windows if window is not None)
        return Reading(view=view, repository=repository, batch_rows=batch_rows, files=reads, present=present)
    window = _query_window(view.source, known, present, end_us)
    return Reading(view=view, repository=repository, batch_rows=batch_rows, query_window=window, present=present)


def advanced(
    cursor: Cursor, reading: Reading, end_us: int | None, newest_event_us: int | None, newest_created_us: int | None
) -> Cursor:
    """The cursor after an incremental read up to `end_us` is settled."""
    known = cursor if cursor.source == source_key(reading.view) else Cursor()
    # Of an unchanged file an earlier read may have reached further than this one.
    files = {
        file.name: FileCursor(
            size=file.size, digest=file.digest, until_us=_further(known.files.get(file.name), file, end_us)
        )
        for file in reading.present
    }
    # Inputs that changed were read up to this end only, however far the old ones had been read.
    unchanged = _states(known.files) == {file.name: (file.size, file.digest) for file in reading.present}
    return Cursor(
        files=files,
        source=source_key(reading.view),
        newest_event_us=_newest(known.newest_event_us, newest_event_us),
        newest_created_us=_newest(known.newest_created_us, newest_created_us),
        until_us=_later_end(known.until_us, end_us) if unchanged else end_us,
    )


def source_key(view: FeatureView) -> str:
    """Changes when the source is declared differently, so that another source is read from its beginning."""
    return hashlib.sha256(canonical_json([source_document(view.source), list(view.fields)])).hexdigest()


def _file_window(last: FileCursor | None, file: SourceFile, end_us: int | None) -> RowWindow | None:
    if last is None or (last.size, last.digest) != (file.size, file.digest):
        return RowWindow(end_us=end_us)
    if last.until_us is None or (end_us is not None and end_us <= last.until_us):
        return None
    return RowWindow(start_us=last.until_us, end_us=end_us)


def _query_window(
    source: SqlSource, known: Cursor, present: tuple[SourceFile, ...], end_us: int | None
) -> RowWindow | None:
    unchanged = {file.name: (file.size, file.digest) for file in present} == _states(known.files)
    reached = known.until_us is None or (end_us is not None and end_us <= known.until_us)
    if unchanged and reached and known.files:
        return None
    if not known.files:
        return RowWindow(end_us=end_us)
    if source.created_timestamp_column is not None and known.newest_created_us is not None:
        # One microsecond more: a row exactly `overlap` older than the newest one is still read.
        since = known.newest_created_us - timedelta_us(source.overlap) - 1
        return RowWindow(end_us=end_us, created_after_us=since, unread_from_us=known.until_us)
    if source.lookback is not None and known.newest_event_us is not None:
        return RowWindow(start_us=known.newest_event_us - timedelta_us(source.lookback), end_us=end_us)
    return RowWindow(end_us=end_us)


def _states(files: dict[str, FileCursor]) -> dict[str, tuple[int, str]]:
    return {name: (last.size, last.digest) for name, last in files.items()}


def _further(last: FileCursor | None, file: SourceFile, end_us: int | None) -> int | None:
    if last is None or (last.size, last.digest) != (file.size, file.digest):
        return end_us
    return _later_end(last.until_us, end_us)


def _later_end(first: int | None, second: int | None) -> int | None:
    """The later of two ends; None is the end of time."""
    return None if first is None or second is None else max(first, second)


def _newest(first: int | None, second: int | None) -> int | None:
    return max((value for value in (first, second) if value is not None), default=None)
