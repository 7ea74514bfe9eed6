"""The most requested keys of each view, kept over restarts: what a worker loads before it takes requests.

A sample of the requests is counted in columns now and then; older counts fade, so that keys which nobody asks for any
more make room. Each worker writes a file of its own, and reads those of all.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.online.reading import Wanted

log = logging.getLogger(__name__)

#: Keys of one view that are remembered.
KEYS_MAX = 1 << 16
#: Of so many requests one is counted, and so many are kept for counting at most.
SAMPLE, WAITING_MAX = 4, 4096
#: What a count is worth one counting later.
FADE = 0.95
_PATTERN = "hot-keys-*.arrow"
_SCHEMA = pa.schema([("key", pa.binary()), ("count", pa.float64())])
_FILE_SCHEMA = pa.schema([("view", pa.string()), *_SCHEMA])


class HotKeys:
    """Counts keys for one worker. `note` belongs to the event loop; `fold` and `save` may run in a thread."""

    def __init__(self, folder: Path, worker: int = 0) -> None:
        self._folder, self._path = folder, folder / f"hot-keys-{worker}.arrow"
        self._requests = 0
        self._waiting: list[Wanted] = []
        self._counts: dict[str, pa.Table] = {}

    def note(self, wanted: Sequence[Wanted]) -> None:
        """A request asked for these."""
        self._requests += 1
        if self._requests % SAMPLE == 0 and len(self._waiting) < WAITING_MAX:
            self._waiting.extend(wanted)  # `+=` would put back a list that was folded meanwhile

    def fold(self) -> None:
        """Count what was noted."""
        waiting, self._waiting = self._waiting, []
        noted: dict[str, list[pa.BinaryArray]] = defaultdict(list)
        for asked in waiting:
            noted[asked.ref].append(asked.keys)
        for ref, keys in noted.items():
            counted = pc.value_counts(pa.concat_arrays(keys))
            new = pa.table([counted.field("values"), counted.field("counts").cast(pa.float64())], schema=_SCHEMA)
            known = self._counts.get(ref, _SCHEMA.empty_table())
            faded = known.set_column(1, "count", pc.multiply(known.column("count"), FADE))
            self._counts[ref] = _greatest([faded, new])

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = [
            pa.table([pa.repeat(ref, len(table)), *table.columns], schema=_FILE_SCHEMA)
            for ref, table in self._counts.items()
        ]
        half = self._path.with_suffix(".tmp")
        with pa.OSFile(str(half), "wb") as file, pa.ipc.new_file(file, _FILE_SCHEMA) as writer:
            writer.write_table(pa.concat_tables([_FILE_SCHEMA.empty_table(), *parts]))
        os.replace(half, self._path)

    def load(self) -> dict[str, pa.BinaryArray]:
        """view@version -> the keys that any worker remembers, the most requested first; this one goes on from there."""
        tables = [table for path in sorted(self._folder.glob(_PATTERN)) if (table := _read(path)) is not None]
        everything = pa.concat_tables([_FILE_SCHEMA.empty_table(), *tables])
        for ref in pc.unique(everything.column("view")).to_pylist():
            of_view = everything.filter(pc.equal(everything.column("view"), ref)).select(_SCHEMA.names)
            self._counts[ref] = _greatest([of_view])
        return {ref: table.column("key").combine_chunks() for ref, table in self._counts.items()}


def _greatest(tables: Sequence[pa.Table]) -> pa.Table:
    """The counts of each key together, greatest first."""
    summed = pa.concat_tables(tables).group_by("key").aggregate([("count", "sum")])
    order = pc.sort_indices(summed, sort_keys=[("count_sum", "descending"), ("key", "ascending")])[:KEYS_MAX]
    best = summed.take(order)
    return pa.table([best.column("key"), best.column("count_sum")], schema=_SCHEMA).combine_chunks()


def _read(path: Path) -> pa.Table | None:
    """A file's counts; a file that cannot be read costs a colder start, nothing else."""
    try:
        with pa.OSFile(str(path), "rb") as file:
            table = pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("preload: the hot keys in %s cannot be read and are left out: %s", path.name, error)
        return None
    if table.schema != _FILE_SCHEMA:
        log.warning("preload: %s holds no hot keys of this release and is left out", path.name)
        return None
    return table
