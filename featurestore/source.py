"""Where rows come from: files, or SQL over files. Reading them is the work of `offline/sources.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from featurestore.location import Location, definition_site


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A Parquet, CSV or Arrow file, a folder of them, or a glob; paths are relative to the repository.

    `timestamp_field` names the event time; `created_timestamp_column` names when a row became known, where the
    source has it. Timestamps without a zone are refused unless `timezone` (an IANA name) says where they were
    written; `ambiguous` then says which of two instants a repeated local time means ("earlier" or "later").
    A local time that a clock change skips is always a violation.
    """

    path: str
    timestamp_field: str
    created_timestamp_column: str | None = None
    timezone: str | None = None
    ambiguous: str | None = None
    description: str = ""
    owner: str = ""
    tier: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class SqlSource:
    """A DuckDB query over named input files; it runs on one thread, so that it gives the same bytes every time.

    `inputs` maps the names used in `query` to Parquet, CSV or Arrow files, folders or globs. `threads` may be
    raised by an author who promises that the answer does not depend on it. Incremental loads read rows whose
    created timestamp is at most `overlap` older than the newest one seen; without a created timestamp, rows
    whose event time is at most `lookback` older than the newest one seen (None: all rows, every time).
    """

    query: str
    inputs: Mapping[str, str]
    timestamp_field: str
    created_timestamp_column: str | None = None
    timezone: str | None = None
    ambiguous: str | None = None
    threads: int = 1
    overlap: timedelta = timedelta(days=1)
    lookback: timedelta | None = None
    description: str = ""
    owner: str = ""
    tier: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)


Source = FileSource | SqlSource
