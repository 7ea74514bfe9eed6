"""As served, through the facade: arrivals materialized one by one by a clock that is set to their times.

Only public names are used, since how an engine knows the publish log is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import from_us
from featurestore.feature_store import FeatureStore
from featurestore.offline.base import OfflineStore
from featurestore.registry.apply import apply
from featurestore.registry.definitions import Definitions
from featurestore.repository import Repository
from featurestore.settings import load_settings
from materialization.job import Request
from tests.conformance.answers import Answer
from tests.conformance.cases import Arrival, Case
from tests.conformance.engines import about, feature_view, service_of, source_table, spine_table, training_answers

SETTINGS = 'project = "{project}"\n[registry]\npath = "registry.db"\n[online]\npath = "online.db"\n'


@dataclass
class SetClock:
    """A clock that stands where it is put."""

    instant: datetime
    real = False

    def now(self) -> datetime:
        """The instant."""
        return self.instant


@dataclass
class Replay:
    """A repository in which arrivals of cases are loaded and published at their times."""

    root: Path
    clock: SetClock
    facade: FeatureStore

    def materialize(self, case: Case, arrival: Arrival) -> None:
        """Load and publish one arrival; the clock goes on to its acknowledgement while the rows are written."""
        assert arrival.at_us is not None
        assert arrival.acknowledged_us is not None
        acknowledged = from_us(arrival.acknowledged_us)
        view = feature_view(case, arrival.view)
        if arrival.rows:
            path = self.root / view.source.path / f"{arrival.number:03}.parquet"  # type: ignore[union-attr]
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(source_table(case.views[arrival.view], arrival), path)

        def wrote(_: str, step: str, rows: int) -> None:
            if step == "publish":
                self.clock.instant = acknowledged

        self.clock.instant = from_us(arrival.at_us)
        outcome = self.facade.run(Request(load=bool(arrival.rows)), views=[view.ref], progress=wrote)
        assert outcome.errors == [], outcome.errors

    def training_set(self, case: Case, knowledge: str) -> tuple[dict[int, dict[str, Answer]], pa.Table]:
        """(spine row -> ref -> answer, the training set's table)."""
        spine = spine_table(case, case.spine)
        made = self.facade.get_historical_features(spine, case.name, knowledge=knowledge, with_status=True)
        return training_answers(case, made.to_arrow()), made.to_arrow()

    def uncertain(self, case: Case, table: pa.Table, ref: str, row: int) -> bool:
        """Whether the training set says that a publish was on its way when a spine row asked."""
        flagged: bool = table.column(about(case, ref, "uncertain"))[row].as_py()
        return flagged


@contextmanager
def replaying(root: Path, project: str, offline: OfflineStore, cases: Sequence[Case]) -> Iterator[Replay]:
    """A repository in `root` with the views of `cases`, its history in `offline`."""
    (root / "featurestore.toml").write_text(SETTINGS.format(project=project), encoding="utf-8")
    clock = SetClock(from_us(0))
    repository = Repository(load_settings(root, {}), clock)
    repository.offline = offline
    views = [feature_view(case, ref) for case in cases for ref in case.views]
    definitions = Definitions(
        entities={entity.name: entity for view in views for entity in view.entities},
        views={view.ref: view for view in views},
        services={case.name: service_of(case) for case in cases},
    )
    apply(repository.registry, repository.state, offline, repository.online, definitions, who="corpus", clock=clock)
    try:
        yield Replay(root, clock, FeatureStore.of(repository))
    finally:
        repository.close()
