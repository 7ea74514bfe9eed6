"""Training sets: the spine's rows, in the spine's order, each with what was known at its as_of.

One point-in-time join per view, laid beside the spine by row number; the spine itself never passes through an engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.clock import timedelta_us
from featurestore.compiler.names import EVENT, ROW
from featurestore.compiler.point_in_time_join import PointInTimeJoin
from featurestore.errors import InputError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.ingest.gate import check_column
from featurestore.matrix import MatrixPlan, to_matrix
from featurestore.offline import frames
from featurestore.offline.base import OfflineStore
from featurestore.offline.served import PublishLog
from featurestore.offline.spine import Spine, spine_column
from featurestore.outputs import Output, pinned_views, service_outputs
from featurestore.status import Status, row_statuses

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

#: Columns are put in order side by side; pyarrow lets go of the interpreter meanwhile.
GATHER_THREADS = 4
STATUS_NAMES = pa.array([status.name for status in Status])


@dataclass(frozen=True, kw_only=True)
class TrainingSetQuery:
    """What a training set is made of; `positions` pins the history of each view (by ref).

    `publishes` are the logs of the views, for `knowledge="as_served"` alone.
    """

    project: str
    service: FeatureService
    views: Mapping[str, FeatureView]
    positions: Mapping[str, int]
    knowledge: str = "created"
    full_feature_names: bool = False
    with_status: bool = False
    publishes: Mapping[str, PublishLog] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A finished training set: a table with the spine's columns, then the service's, and how it came about."""

    table: pa.Table
    outputs: Sequence[Output]
    query: TrainingSetQuery
    spine: Spine
    describe: Callable[[], Mapping[str, Any]]
    #: Is told where the training set was written, and its manifest.
    on_written: Callable[[Path, Mapping[str, Any]], None] | None = None

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """How it came about, with digests of its content; made when first asked for, since digests read all of it."""
        return self.describe()

    @property
    def digest(self) -> str:
        """The content digest over all columns."""
        return str(self.manifest["digest"]["sha256"])

    def to_arrow(self) -> pa.Table:
        """The table."""
        return self.table

    def to_pandas(self) -> pd.DataFrame:
        """A pandas frame with Arrow-backed columns, so that integers with nulls stay integers."""
        return frames.to_pandas(self.table)

    def to_polars(self) -> pl.DataFrame:
        """A polars frame."""
        return frames.to_polars(self.table)

    def to_matrix(self) -> NDArray[np.float32]:
        """The service's columns as float32 (rows, columns), by the rule that serving uses."""
        plan = MatrixPlan.compile([(output.name, output.field, output.fill) for output in self.outputs])
        return to_matrix(plan, [self.table.column(output.name).combine_chunks() for output in self.outputs])

    def write(self, path: str | Path) -> Path:
        """Write Parquet, Arrow or CSV (by suffix) with `PATH.manifest.json` beside it, both atomically."""
        from featurestore.offline.export import write_training_set

        written = write_training_set(self, Path(path))
        if self.on_written is not None:
            self.on_written(written, self.manifest)
        return written


@dataclass(frozen=True, slots=True)
class ViewAnswer:
    """What one view answers to the spine: aligned columns and a status per row."""

    columns: Mapping[str, pa.Array]
    statuses: NDArray[np.uint8]
    event_us: NDArray[np.int64]
    #: Whether a publish was under way at as_of; None unless knowledge is as_served.
    uncertain: NDArray[np.bool_] | None


def build_table(store: OfflineStore, query: TrainingSetQuery, spine: Spine) -> tuple[pa.Table, tuple[Output, ...]]:
    """(the training set's table, the outputs of its service); InputError when a column name is taken twice."""
    outputs = service_outputs(query.service, query.views, full_feature_names=query.full_feature_names)
    spine_columns = _with_request_fields(spine, query.service)
    columns: dict[str, pa.Array | pa.ChunkedArray] = dict(spine_columns)
    answers = {
        view.ref: _answer(store, query, view, spine) for view in pinned_views(query.service, query.views).values()
    }
    for output in outputs:
        if output.view:
            _claim(columns, output.name, answers[output.view].columns[output.field.name])
    if query.with_status:
        views = list(pinned_views(query.service, query.views).values())
        versions = Counter(view.name for view in views)
        for view in views:
            named = view.name if versions[view.name] == 1 else view.ref
            for name, column in _status_columns(named, answers[view.ref], spine).items():
                _claim(columns, name, column)
    return pa.table(columns), outputs


def _answer(store: OfflineStore, query: TrainingSetQuery, view: FeatureView, spine: Spine) -> ViewAnswer:
    wanted = _wanted_fields(query.service, view)
    join = PointInTimeJoin(
        project=query.project,
        view=view,
        fields=wanted,
        position=query.positions[view.ref],
        knowledge=query.knowledge,
        asking=spine.rows,
    )
    log = query.publishes[view.ref] if query.knowledge == "as_served" else None
    answers = _answers(store, join, spine, log)
    place = np.full(spine.rows, -1, dtype=np.int64)
    place[answers.column(ROW).to_numpy()] = np.arange(answers.num_rows)
    found = place >= 0
    event_us = np.zeros(spine.rows, dtype=np.int64)
    event_us[found] = pc.cast(answers.column(EVENT), pa.int64()).to_numpy()[place[found]]
    all_null = np.zeros(spine.rows, dtype=bool)
    all_null[found] = _all_null(answers, wanted)[place[found]]
    ttl_us = None if view.ttl is None else timedelta_us(view.ttl)
    statuses = row_statuses(found, event_us, spine.as_of_us, all_null, ttl_us=ttl_us)
    # A gather by index: rows not found or expired become null.
    gather = pa.array(place, mask=~found | (statuses == Status.EXPIRED))
    with ThreadPoolExecutor(GATHER_THREADS) as threads:
        taken = threads.map(lambda name: answers.column(name).combine_chunks().take(gather), wanted)
        columns = dict(zip(wanted, taken, strict=True))
    uncertain = None if log is None else log.uncertain(spine.as_of_us)
    return ViewAnswer(columns=columns, statuses=statuses, event_us=event_us, uncertain=uncertain)


def _answers(store: OfflineStore, join: PointInTimeJoin, spine: Spine, log: PublishLog | None) -> pa.Table:
    """What history answers; as served, one join for each stretch of the publish log that the spine asks about."""
    if log is None:
        return store.point_in_time(join, spine.asking(join.view.join_keys))
    last = log.last_by(spine.as_of_us)
    parts = []
    for stretch in log.stretches():
        inside = (stretch.first <= last) & (last <= stretch.last)
        if inside.any():
            asking = spine.asking(join.view.join_keys, pa.array(last, mask=~inside))
            pushes = stretch.pushes.num_rows > 0
            parts.append(store.point_in_time(replace(join, pushes=pushes), asking, stretch))
    if parts:
        return pa.concat_tables(parts)
    # Nobody asks after the first publish: the shape of no answer comes from asking nothing.
    return store.point_in_time(replace(join, knowledge="created"), spine.asking(join.view.join_keys).slice(0, 0))


def _wanted_fields(service: FeatureService, view: FeatureView) -> list[str]:
    chosen = (
        selected.field
        for selection in service.selections
        if f"{selection.view}@{selection.version}" == view.ref
        for selected in selection.fields
    )
    return list(dict.fromkeys(chosen))


def _all_null(answers: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    all_null = np.ones(answers.num_rows, dtype=bool)
    for name in names:
        if not all_null.any():
            break
        all_null &= answers.column(name).is_null().to_numpy()
    return all_null


def _with_request_fields(spine: Spine, service: FeatureService) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The spine's columns, its request fields past the gate and in the types they are declared with."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: spine.table.column(name) for name in spine.table.column_names
    }
    missing = [field.name for field in service.request_fields if field.name not in columns]
    if missing:
        raise InputError(
            f"the spine lacks the request field {', '.join(map(repr, missing))} of service {service.name!r}; add the "
            f"column with the values that a request would carry"
        )
    for declared in service.request_fields:
        values, broken = check_column(declared, spine_column(spine.table, declared.name, declared.dtype))
        if broken:
            says, rows = next(iter(broken.items()))
            raise InputError(f"spine column {declared.name!r}, row {int(np.argmax(rows))}: {says}; mend the spine")
        columns[declared.name] = values
    return columns


def _status_columns(view: str, answer: ViewAnswer, spine: Spine) -> dict[str, pa.Array]:
    found = answer.statuses != Status.NOT_FOUND
    age_us = np.where(found, spine.as_of_us - answer.event_us, 0)
    columns = {
        f"{view}__status": STATUS_NAMES.take(pa.array(answer.statuses)),
        f"{view}__age_us": pa.array(age_us, mask=~found),
    }
    return columns if answer.uncertain is None else {**columns, f"{view}__uncertain": pa.array(answer.uncertain)}


def _claim(columns: dict[str, pa.Array | pa.ChunkedArray], name: str, column: pa.Array) -> None:
    if name in columns:
        raise InputError(
            f"the spine already has a column {name!r}, which the service gives too; rename it in the spine, give the "
            f"field an alias in the service, or ask for full feature names"
        )
    columns[name] = column
