"""Apply, on real stores: it does what plan printed, records it, refuses what would break readers, one at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurestore import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    FixedClock,
    Float64,
    Int32,
    String,
)
from featurestore.arrow_types import TIMESTAMP
from featurestore.errors import EvolutionError, NotFoundError, StoreBusy, StoreError
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.offline.base import ArrivedRows
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.online.sqlite import SqliteOnlineStore
from featurestore.registry.apply import ApplyResult, apply, applying, finish_open_intent, teardown
from featurestore.registry.definitions import Definitions
from featurestore.registry.intents import list_applies, open_intent, read_apply
from featurestore.registry.plan import Plan, make_plan
from featurestore.registry.registry import Registry, open_state
from featurestore.registry.state import PublishRecord, StateStore
from tests.fix_registry import on_both
from tests.waiting import WAIT_S

CLOCK = FixedClock(datetime(2024, 5, 1, 12, tzinfo=UTC))
AIRPORT = Entity(name="airport", join_keys={"airport": String})
TEMP, WIND = Field(name="temp", dtype=Float64), Field(name="wind", dtype=Int32)
WEATHER = FeatureView(
    name="weather", entities=[AIRPORT], schema=[TEMP], source=FileSource(path="w.csv", timestamp_field="t")
)
LATE = FeatureService(name="late", features=[WEATHER[["temp"]]])


def declare(*definitions: FeatureView | FeatureService, entity: Entity = AIRPORT) -> Definitions:
    return Definitions(
        entities={entity.name: entity},
        views={item.ref: item for item in definitions if isinstance(item, FeatureView)},
        services={item.name: item for item in definitions if isinstance(item, FeatureService)},
    )


@dataclass
class Shop:
    """One project on real stores in a folder."""

    folder: Path
    #: The registry: a file, or a database.
    where: Path | str
    registry: Registry
    state: StateStore
    offline: DuckDBOfflineStore
    online: SqliteOnlineStore

    @staticmethod
    def open(folder: Path, where: Path | str) -> Shop:
        registry, state = open_state(where, "shop")
        offline = DuckDBOfflineStore(folder / "offline.duckdb", "shop", wait_s=5)
        return Shop(folder, where, registry, state, offline, SqliteOnlineStore(folder / "online.db", "shop"))

    def plan(self, declared: Definitions) -> Plan:
        return make_plan(self.registry, self.state, declared, self.offline.history_rows)

    def apply(self, declared: Definitions, **options: Any) -> ApplyResult:
        options = {"who": "ana", "clock": CLOCK, "wait_s": 0.2, **options}
        return apply(self.registry, self.state, self.offline, self.online, declared, **options)

    def publish(self, ref: str) -> None:
        lease = self.state.acquire_lease(ref, "test", 60)
        moved: dict[str, Any] = {
            "position_from": 0,
            "position_to": 1,
            "horizon_from_us": None,
            "horizon_to_us": 1,
            "watermark_us": 1,
        }
        times: dict[str, Any] = {"started_at_us": 1, "acknowledged_at_us": 1, "rows_written": 1, "keys_repaired": 0}
        self.state.commit_publish(PublishRecord(view=ref, kind="publish", **moved, **times), lease)
        self.state.release_lease(lease)

    def append(self, view: FeatureView, rows: int = 1) -> None:
        """Rows in history, as an ingest would leave them."""
        at = pa.array([CLOCK.instant + timedelta(hours=hour) for hour in range(rows)], TIMESTAMP)
        first = self.state.take_sequences(view.ref, rows)
        columns = {
            "airport": pa.array(["JFK"] * rows),
            "event_timestamp": at,
            "created_timestamp": at,
            "_sequence": pa.array(range(first, first + rows), pa.int64()),
            "temp": pa.array([1.0] * rows),
        }
        self.offline.append(view, ArrivedRows(rows=pa.table(columns), schema_id=self.registry.schema_id(view.ref)))

    def histories(self) -> dict[str, list[str]]:
        """The user's columns of every history table that exists."""
        if not (self.folder / "offline.duckdb").exists():
            return {}
        query = "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'shop' ORDER BY column_index"
        with duckdb.connect(str(self.folder / "offline.duckdb")) as connection:
            found: dict[str, list[str]] = {}
            for table, column in connection.execute(query).fetchall():
                if not table.startswith("_"):
                    found.setdefault(table, []).append(column)
        return {table: [name for name in names if name in ("temp", "wind")] for table, names in found.items()}

    def close(self) -> None:
        self.online.close()
        self.registry.close()


@pytest.fixture
def shop(tmp_path: Path, where: Path | str) -> Iterator[Shop]:
    shop = Shop.open(tmp_path, where)
    yield shop
    shop.close()


def steps(result: ApplyResult | Plan) -> list[str]:
    return [f"{step.verb} {step.subject} {step.name}" for step in result.steps]


# ------------------------------------------------------------------ what it does


@on_both
def test_apply_executes_exactly_the_steps_that_plan_prints(shop: Shop) -> None:
    declared = declare(WEATHER, LATE)
    planned = shop.plan(declared)
    result = shop.apply(declared)
    assert result.steps == planned.steps
    assert steps(result) == [
        "create history weather@1",
        "create entity airport",
        "create feature view weather@1",
        "create feature service late",
    ]
    assert shop.plan(declared).steps == ()
    assert shop.registry.entities() == {"airport": AIRPORT}
    assert shop.registry.views() == {"weather@1": WEATHER}
    assert shop.registry.services() == {"late": LATE}
    assert shop.histories() == {"weather__v1": ["temp"]}


def test_applying_the_same_again_changes_nothing(shop: Shop) -> None:
    first = shop.apply(declare(WEATHER, LATE))
    again = shop.apply(declare(replace(WEATHER), replace(LATE)))
    assert (first.revision, again.revision, again.steps, again.record) == (1, 1, (), None)
    assert len(list_applies(shop.registry)) == 1


@on_both
def test_every_apply_is_recorded_with_who_when_what_and_both_fingerprints(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    declared = declare(WEATHER, LATE)
    shop.apply(declared, who="ben")
    newest, oldest = list_applies(shop.registry)
    assert (oldest.id, newest.id, newest.who, newest.state, newest.revision) == (1, 2, "ben", "done", 2)
    assert newest.started_at_us == newest.finished_at_us == int(CLOCK.instant.timestamp() * 1_000_000)
    assert newest.fingerprint == declared.fingerprint()
    (step,) = newest.steps
    assert step["definition"] == definition_fingerprint(LATE) == shop.registry.fingerprint("service", "late")
    assert step["signature"] == service_signature(LATE, {"weather@1": WEATHER}) == shop.registry.signature("late")
    assert read_apply(shop.registry, 2) == newest
    with pytest.raises(NotFoundError, match="no apply named '3'"):
        read_apply(shop.registry, 3)


def test_a_new_field_widens_history_and_gets_a_new_schema_id(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    wider = replace(WEATHER, schema=[WIND, TEMP])
    result = shop.apply(declare(wider))
    assert steps(result) == ["widen history weather@1", "update feature view weather@1"]
    assert shop.histories() == {"weather__v1": ["temp", "wind"]}
    assert shop.registry.schema_id("weather@1") == 2
    assert shop.registry.row_schemas("weather@1") == {1: (TEMP,), 2: (WIND, TEMP)}


def test_a_change_that_leaves_rows_as_they_are_keeps_the_schema_id(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    result = shop.apply(declare(replace(WEATHER, owner="x", schema=[replace(TEMP, description="y")])))
    assert steps(result) == ["update feature view weather@1"]
    assert shop.registry.schema_id("weather@1") == 1
    assert shop.registry.view("weather").owner == "x"


def test_an_entity_described_anew_is_one_step_and_its_views_know(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    entity = replace(AIRPORT, description="x")
    view = replace(WEATHER, entities=[entity])
    assert steps(shop.apply(declare(view, LATE, entity=entity))) == ["update entity airport"]
    assert shop.registry.view("weather").entities[0].description == "x"


@on_both
def test_a_registry_opened_before_sees_what_another_process_applied(shop: Shop) -> None:
    assert (shop.registry.revision(), shop.registry.views()) == (0, {})
    other = Shop.open(shop.folder, shop.where)
    other.apply(declare(WEATHER))
    other.close()
    assert (shop.registry.revision(), list(shop.registry.views())) == (1, ["weather@1"])


def test_names_find_the_highest_version_and_unknown_ones_the_nearest(shop: Shop) -> None:
    shop.apply(declare(WEATHER, *(replace(WEATHER, version=version) for version in (2, 10))))
    assert shop.registry.view("weather").version == 10
    assert shop.registry.view("weather@2").version == 2
    with pytest.raises(NotFoundError, match=r"no feature view named 'wether@2'; did you mean 'weather@2'"):
        shop.registry.view("wether@2")
    with pytest.raises(NotFoundError, match="no feature service named 'x'; none is known yet"):
        shop.registry.service("x")


# ------------------------------------------------------------------ what it refuses


def test_breaking_changes_are_refused_all_at_once_with_the_next_version(shop: Shop) -> None:
    other = replace(WEATHER, name="other")
    shop.apply(declare(WEATHER, other, replace(other, version=4)))
    changed = [replace(WEATHER, ttl=timedelta(1)), replace(other, schema=[replace(TEMP, nullable=False)])]
    with pytest.raises(EvolutionError) as caught:
        shop.apply(declare(*changed, replace(other, version=4)))
    assert str(caught.value).splitlines() == [
        "apply refuses, and changed nothing:",
        "  feature view other@1: field temp is no longer nullable; keep version=1 as it was and declare the change as "
        "version=5 beside it",
        "  feature view weather@1: ttl none -> 1d, which changes when values expire; keep version=1 as it "
        "was and declare the change as version=2 beside it",
    ]
    assert shop.registry.revision() == 1
    assert shop.registry.views()["weather@1"] == WEATHER
    assert open_intent(shop.registry) is None


def test_both_versions_of_a_view_live_side_by_side(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    second = replace(WEATHER, version=2, schema=[WIND], ttl=timedelta(1))
    shop.apply(declare(WEATHER, second))
    assert shop.histories() == {"weather__v1": ["temp"], "weather__v2": ["wind"]}
    assert shop.registry.schema_id("weather@2") == 1


def test_a_service_does_not_move_to_a_view_that_was_never_published(shop: Shop) -> None:
    second = replace(WEATHER, version=2)
    shop.apply(declare(WEATHER, LATE))
    shop.publish("weather@1")
    moved = declare(WEATHER, second, replace(LATE, features=[second[["temp"]]]))
    with pytest.raises(EvolutionError, match=r"late: .*weather@2 never published.*materialize-incremental --views wea"):
        shop.apply(moved)
    shop.apply(declare(WEATHER, second, LATE))
    shop.publish("weather@2")
    (step,) = shop.apply(moved).steps
    assert (step.impact, step.subject, step.name) == ("signature", "feature service", "late")
    assert "bind anew" in step.way_out


def test_allow_empty_moves_it_all_the_same(shop: Shop) -> None:
    second = replace(WEATHER, version=2)
    shop.apply(declare(WEATHER, LATE))
    moved = replace(LATE, features=[second[["temp"]]])
    shop.apply(declare(WEATHER, second, moved), allow_empty=True)
    assert shop.registry.services() == {"late": moved}


@on_both
def test_history_with_rows_is_dropped_only_when_that_is_allowed(shop: Shop) -> None:
    other = replace(WEATHER, name="other")
    shop.apply(declare(WEATHER, other))
    shop.append(WEATHER, rows=3)
    shop.publish("weather@1")
    with pytest.raises(EvolutionError, match=r"weather@1: its history holds 3 rows; .* --allow-data-loss"):
        shop.apply(declare(other))
    assert shop.offline.history_rows("weather@1") == 3
    result = shop.apply(declare(other), allow_data_loss=True)
    assert steps(result) == ["remove feature view weather@1", "drop data weather@1"]
    assert shop.histories() == {"other__v1": ["temp"]}
    assert shop.state.publish_state("weather@1") is None
    assert shop.state.take_sequences("weather@1", 1) == 1


def test_a_view_without_rows_is_removed_without_a_flag(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    assert steps(shop.apply(Definitions())) == [
        "remove feature service late",
        "remove feature view weather@1",
        "remove entity airport",
        "drop data weather@1",
    ]
    assert shop.histories() == {}


@on_both
def test_a_view_that_comes_back_never_reuses_a_schema_id(shop: Shop) -> None:
    """A server that still knows the old list must not take it for the new one."""
    shop.apply(declare(WEATHER))
    shop.apply(Definitions())
    with pytest.raises(NotFoundError):
        shop.registry.schema_id("weather@1")
    shop.apply(declare(replace(WEATHER, schema=[WIND])))
    assert shop.registry.row_schemas("weather@1") == {2: (WIND,)}


def test_data_of_a_view_that_a_job_writes_is_not_dropped(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    lease = shop.state.acquire_lease("weather@1", "a running job", 60)
    with pytest.raises(StoreBusy, match="weather@1 is being written by a running job"):
        shop.apply(Definitions())
    assert shop.registry.views() == {"weather@1": WEATHER}
    shop.state.release_lease(lease)
    shop.apply(Definitions())
    assert shop.registry.views() == {}


def test_teardown_removes_everything_with_its_rows(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    shop.append(WEATHER)
    result = teardown(shop.registry, shop.state, shop.offline, shop.online, who="ana", clock=CLOCK)
    assert steps(result)[-1] == "drop data weather@1"
    assert shop.registry.snapshot().definitions == Definitions()
    assert shop.histories() == {}
    assert len(list_applies(shop.registry)) == 2


# ------------------------------------------------------------------ faults and other processes


class FullDisk:
    """An offline store whose disk is full once a given number of histories was made."""

    def __init__(self, offline: DuckDBOfflineStore, after: int) -> None:
        self._offline, self._left = offline, after
        self.drop_history, self.history_rows = offline.drop_history, offline.history_rows

    def ensure_history(self, view: FeatureView) -> None:
        if self._left == 0:
            raise StoreError("no space left")
        self._left -= 1
        self._offline.ensure_history(view)


@on_both
def test_a_fault_before_the_commit_takes_everything_back(shop: Shop) -> None:
    declared = declare(WEATHER, replace(WEATHER, name="other"), LATE)
    full = FullDisk(shop.offline, after=1)
    with pytest.raises(StoreError, match="no space left"):
        apply(shop.registry, shop.state, full, shop.online, declared, who="ana", clock=CLOCK)
    assert shop.histories() == {}
    assert shop.registry.revision() == 0
    assert [record.state for record in list_applies(shop.registry)] == ["rolled_back"]
    assert shop.apply(declared).revision == 1


@on_both
def test_the_second_of_two_applies_waits_and_sees_the_result_of_the_first(shop: Shop) -> None:
    other = Shop.open(shop.folder, shop.where)
    answers: list[ApplyResult] = []
    with applying(shop.state, 0):
        second = threading.Thread(target=lambda: answers.append(other.apply(declare(WEATHER), wait_s=WAIT_S)))
        second.start()
        time.sleep(0.2)
        assert answers == []
    second.join(timeout=WAIT_S)
    other.close()
    assert answers[0].revision == 1
    assert shop.apply(declare(WEATHER)).steps == ()


def test_an_apply_that_waited_in_vain_says_who_applies(shop: Shop) -> None:
    with applying(shop.state, 0), pytest.raises(StoreBusy, match=r"pid \d+ \(apply\) since .*; wait for it"):
        shop.apply(declare(WEATHER), wait_s=0.1)
    assert shop.registry.revision() == 0


@on_both
def test_two_real_processes_that_apply_at_once_both_end_well(shop: Shop) -> None:
    processes = [start_apply(shop) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sorted(out.strip() for out, _ in answers) == ["0 steps", "6 steps"]
    assert shop.registry.revision() == 1


# ------------------------------------------------------------------ killed

#: Applied before the kill: `weather@1` with rows, `old@1` with rows; the killed apply widens, adds and removes.
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_apply as t
where = Path(sys.argv[2]) if sys.argv[2].startswith("/") else sys.argv[2]
shop = t.Shop.open(Path(sys.argv[1]), where)
result = shop.apply(t.target(), allow_data_loss=True, wait_s=100)
print(len(result.steps), "steps")
"""
OLD = replace(WEATHER, name="old")


def target() -> Definitions:
    wider = replace(WEATHER, schema=[TEMP, WIND])
    return declare(wider, replace(WEATHER, version=2), replace(LATE, features=[wider[["temp"]]]))


def start_apply(shop: Shop, failpoint: str | None = None) -> subprocess.Popen[str]:
    import os

    environment = dict(os.environ) | ({"FEATURESTORE_FAILPOINT": failpoint} if failpoint else {})
    command = [sys.executable, "-c", CHILD, str(shop.folder), str(shop.where), str(Path(__file__).parent)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


FAILPOINTS = [
    "apply.intent_written",
    "apply.history_ensured",
    "apply.history_ensured:2",
    "apply.prepared",
    "apply.committed",
    "apply.online_dropped",
    "apply.history_dropped",
    "apply.dropped",
]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_an_apply_killed_at_any_step_is_finished_by_the_next_command(shop: Shop, failpoint: str) -> None:
    shop.apply(declare(WEATHER, OLD, LATE))
    shop.append(WEATHER, rows=2)
    shop.append(OLD, rows=2)
    process = start_apply(shop, failpoint)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 137, errors
    assert open_intent(shop.registry) is not None
    # Whatever was reached, readers see the old definitions or the new ones, whole.
    assert shop.registry.views() in (declare(WEATHER, OLD).views, target().views)

    finished = finish_open_intent(shop.registry, shop.state, shop.offline, shop.online, clock=CLOCK)

    assert finished is not None
    assert finished.state == "done"
    assert open_intent(shop.registry) is None
    assert shop.registry.snapshot().definitions == target()
    assert shop.registry.revision() == 2
    assert shop.histories() == {"weather__v1": ["temp", "wind"], "weather__v2": ["temp"]}
    assert shop.offline.history_rows("weather@1") == 2
    assert shop.state.take_sequences("old@1", 1) == 1
    assert shop.plan(target()).steps == ()
    assert shop.apply(target()).record is None


def test_the_next_apply_finishes_a_killed_one_before_its_own(shop: Shop) -> None:
    shop.apply(declare(WEATHER, OLD, LATE))
    start_apply(shop, "apply.intent_written").communicate(timeout=60)
    declared = target()
    result = shop.apply(replace(declared, services={}))
    assert result.finished is not None
    assert (result.finished.id, result.finished.state) == (2, "done")
    assert steps(result) == ["remove feature service late"]
    assert shop.registry.revision() == 3


def test_nothing_is_finished_while_the_other_process_still_works(shop: Shop) -> None:
    shop.apply(declare(WEATHER, OLD, LATE))
    start_apply(shop, "apply.intent_written").communicate(timeout=60)
    with applying(shop.state, 0):
        assert finish_open_intent(shop.registry, shop.state, shop.offline, shop.online, clock=CLOCK) is None
    assert open_intent(shop.registry) is not None


def test_an_open_intent_that_cannot_be_finished_is_rolled_back(shop: Shop) -> None:
    shop.apply(declare(WEATHER, OLD, LATE))
    start_apply(shop, "apply.intent_written").communicate(timeout=60)
    with pytest.raises(StoreError, match="no space left"):
        finish_open_intent(shop.registry, shop.state, FullDisk(shop.offline, after=0), shop.online, clock=CLOCK)
    assert open_intent(shop.registry) is None
    assert list_applies(shop.registry)[0].state == "rolled_back"
    assert shop.registry.views() == declare(WEATHER, OLD).views
