"""The main job as a user runs it: declare, apply, materialize, train, look up, prove, remove.

The journey runs in processes of its own, once; the flags of each command are tried on a copy of a richer repository.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from featurestore.cli.commands import COMMANDS
from tests.acceptance import shop
from tests.acceptance.shop import LARGE, NOW, SPENDING, at, spine_table, write_spending
from tests.fix_cli import Contents, Done, Run, run

# ------------------------------------------------------------------ the journey: `init --template minimal`

DAY = {"FEATURESTORE_NOW": "2024-05-01T20:00:00Z"}
JOURNEY: dict[str, list[str]] = {
    "plan": ["plan"],
    "apply": ["apply"],
    "materialize": ["materialize", "2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"],
    "train": ["get-historical-features", "--service", "comfort", "--spine", "spine.csv", "--out", "training.parquet"],
    "look up": ["get-online-features", "--service", "comfort", "--key", "station=north", "--key", "station=east"],
    "verify": ["verify", "--json"],
    "teardown": ["teardown", "--yes"],
}


@dataclass(frozen=True)
class Journey:
    """What each step of the journey left; `training` is its training set."""

    steps: dict[str, Done]
    training: pa.Table


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """All steps, in order, each a process in the folder of the repository."""
    above = tmp_path_factory.mktemp("journey")
    steps = {"init": run(above, "init", "weather", "--template", "minimal")}
    for name, arguments in JOURNEY.items():
        steps[name] = run(above / "weather", *arguments, **DAY)
    return Journey(steps, pq.read_table(above / "weather" / "training.parquet"))


def test_every_step_of_the_journey_ends_as_it_should(journey: Journey) -> None:
    codes = {name: done.code for name, done in journey.steps.items()}
    assert codes == dict.fromkeys(["init", *JOURNEY], 0)
    assert {name: done.err for name, done in journey.steps.items() if done.err} == {}


def test_init_says_what_it_made_and_what_comes_next(journey: Journey) -> None:
    said = journey.steps["init"].out
    assert "definitions/stations.py" in said
    assert "next: cd weather && featurestore apply" in said


def test_apply_does_the_steps_that_plan_printed(journey: Journey) -> None:
    planned = [line for line in journey.steps["plan"].out.splitlines() if line.startswith("  compatible")]
    assert len(planned) == 4
    applied = journey.steps["apply"].out.splitlines()
    assert applied == ["applied 4 steps as revision 1:", *planned]


def test_materialize_tells_what_it_read_added_and_published(journey: Journey) -> None:
    lines = journey.steps["materialize"].out.splitlines()
    counts = dict(zip(lines[0].split(maxsplit=7), lines[2].split(), strict=True))
    assert counts == {
        "view": "readings@1",
        "read": "10",
        "added": "10",
        "corrected": "0",
        "duplicate": "0",
        "quarantined": "0",
        "published": "2",
        "as of": "2024-05-01T20:00:00Z",
    }


def test_the_training_set_holds_the_spine_and_what_was_known(journey: Journey) -> None:
    assert journey.training.select(["station", "temperature", "humidity"]).to_pydict() == {
        "station": ["north", "north", "south", "south", "east"],
        "temperature": [8.5, 16.5, 16.0, None, None],
        "humidity": [81, 55, 63, None, None],
    }
    assert "wrote 5 rows x 5 columns to training.parquet" in journey.steps["train"].out


def test_the_online_answer_has_a_status_a_row(journey: Journey) -> None:
    said = journey.steps["look up"].out
    (statuses,) = [line.split()[1:] for line in said.splitlines() if line.startswith("readings__status")]
    assert statuses == ["PRESENT", "NOT_FOUND"]


def test_verify_finds_no_difference(journey: Journey) -> None:
    verified = journey.steps["verify"].json
    assert verified["equal"] is True
    assert [(view["view"], view["equal"]) for view in verified["views"]] == [("readings@1", 2)]


def test_teardown_tells_what_it_removed(journey: Journey) -> None:
    assert journey.steps["teardown"].out.startswith("removed everything, in 4 steps:")


# ------------------------------------------------------------------ a richer repository


BASKET = ["--service", "basket"]
TRAIN = ["get-historical-features", *BASKET, "--spine", "spine.parquet"]
#: name -> (arguments, exit code); {out} is a folder to write to.
WITH_JSON: dict[str, tuple[list[str], int]] = {
    "init": (["init", "{out}/new"], 0),
    "config": (["config"], 0),
    "plan": (["plan", "--sql"], 0),
    "plan --check": (["plan", "--check"], 0),
    "registry export": (["registry", "export", "--out", "{out}/registry.json"], 0),
    "apply": (["apply"], 0),
    **{
        f"list {kind}": (["list", kind], 0)
        for kind in ("entities", "sources", "feature-views", "feature-services", "runs", "applies")
    },
    "describe entity": (["describe", "entity", "customer"], 0),
    "describe source": (["describe", "source", "sources/stock"], 0),
    "describe feature-view": (["describe", "feature-view", "stock"], 0),
    "describe feature-service": (["describe", "feature-service", "basket"], 0),
    "describe apply": (["describe", "apply", "1"], 0),
    "contract": (["contract", "stock"], 0),
    "materialize": (["materialize", "2024-05-01T00:00:00Z", "2024-05-03T00:00:00Z"], 0),
    "materialize-incremental": (["materialize-incremental", "2024-05-03T00:00:00Z"], 0),
    "get-historical-features": ([*TRAIN, "--out", "{out}/t.csv"], 0),
    "get-online-features": (["get-online-features", *BASKET, "--key", "customer_id=1,shop=lisbon,sku=7,hour=9"], 0),
    "verify": (["verify"], 0),
    "validate": (["validate", "stock"], 0),
    "freshness": (["freshness", "--service", "basket"], 0),
    "push": (["push", "stock", "sources/stock/a.csv"], 0),
    "token": (["token", "pricing"], 0),
    "sign-model": (["sign-model", "--manifest", "none.manifest.json", "--model", "models/late/1"], 2),
    "predict": (["predict", *BASKET, "--model", "late", "--spine", "spine.parquet", "--out", "{out}/p.csv"], 2),
    "quarantine list": (["quarantine", "list"], 0),
    "quarantine show": (["quarantine", "show", "--view", "spending"], 0),
    "quarantine export": (["quarantine", "export", "--view", "spending", "--out", "{out}/q.csv"], 0),
    "quarantine replay": (["quarantine", "replay", "--view", "spending"], 0),
    "quarantine drop": (["quarantine", "drop", "--view", "spending"], 2),
    "teardown": (["teardown"], 2),
    "teardown --yes": (["teardown", "--yes"], 0),
    "an unknown name": (["describe", "entity", "custmer"], 2),
    "an unknown flag": (["verify", "--fast"], 2),
    "a file name that is no text": ([*TRAIN[:4], "\udcff.csv", "--out", "{out}/t.csv"], 2),
}


@pytest.mark.parametrize("name", WITH_JSON)
def test_with_json_stdout_is_one_document_and_stderr_holds_none(
    inside: Run, store: Path, tmp_path: Path, name: str
) -> None:
    arguments, code = WITH_JSON[name]
    done = inside(store, *(part.format(out=tmp_path) for part in arguments), "--json", FEATURESTORE_NOW=NOW)
    assert done.code == code, done.err
    assert isinstance(done.json, dict | list)
    assert ("error" in done.json) == (code == 2)
    assert done.err == ""


def test_every_command_is_tried_with_json() -> None:
    """`serve`, `sidecar` and `demo` have tests of their own."""
    assert {arguments[0] for arguments, _ in WITH_JSON.values()} == set(COMMANDS) - {"serve", "sidecar", "demo"}


def test_after_apply_there_is_nothing_to_plan_or_to_apply(inside: Run, store: Path) -> None:
    before = Contents.of(store)
    assert inside(store, "plan", "--unapplied").ok().out.startswith("nothing to do: what is declared is applied\n")
    assert inside(store, "apply").ok().out == "nothing to do: what is declared is applied (revision 1)\n"
    before.assert_kept(store)


def test_everything_applied_can_be_listed_and_described(inside: Run, store: Path) -> None:
    shown = {kind: inside(store, "list", kind).ok().out for kind in ("entities", "sources", "feature-views")}
    assert "customer_id int64" in shown["entities"]
    assert "shop string, sku int32" in shown["entities"]
    assert "sources/spending.parquet" in shown["sources"]
    assert "stock@1" in shown["feature-views"]
    assert "1d" in shown["feature-views"]
    assert NOW in shown["feature-views"]
    assert "spending@1, stock@1" in inside(store, "list", "feature-services").ok().out
    runs = inside(store, "list", "runs", "--json").ok().json
    assert [(job["kind"], job["state"]) for job in runs] == [("materialize-incremental", "succeeded")]
    described = inside(store, "describe", "run", runs[0]["run"], "--json").ok().json
    assert {view["view"]: view["quarantined"] for view in described["views"]}["spending@1"] == 1
    assert inside(store, "describe", "feature-service", "basket", "--json").ok().json["columns"][0]["fill"] == 0.0
    assert "Who buys." in inside(store, "describe", "entity", "customer").ok().out
    assert "loyalty" in inside(store, "describe", "feature-view", "spending@1").ok().out


# ------------------------------------------------------------------ materialization


def loads(done: Done) -> dict[str, Any]:
    """Of each view (rows added, rows written online); None for a step that was not taken."""
    return {
        ref: (
            None if counts["loaded"] is None else counts["loaded"]["added"],
            None if counts["published"] is None else counts["published"]["rows_written"],
        )
        for ref, counts in done.ok().json["views"].items()
    }


def materialized(inside: Run, folder: Path, *arguments: str, now: str = NOW) -> dict[str, Any]:
    return loads(inside(folder, "materialize-incremental", *arguments, "--json", "--now", now))


def test_incremental_runs_with_nothing_new_change_nothing(inside: Run, store: Path) -> None:
    before = Contents.of(store)
    for _ in range(2):
        assert materialized(inside, store) == {"spending@1": (0, 0), "stock@1": (0, 0)}
    now = Contents.of(store)
    assert (now.history, now.online) == (before.history, before.online)


def test_a_row_that_arrives_late_is_loaded_and_a_row_that_becomes_known_is_published(inside: Run, store: Path) -> None:
    write_spending(store, [*SPENDING, (2, at("01 13:00"), at("02 13:00"), 6.0, "gold")])
    assert materialized(inside, store, now="2024-05-02T14:00:00Z") == {"spending@1": (1, 1), "stock@1": (0, 0)}
    assert materialized(inside, store, now="2024-05-04T00:00:00Z") == {"spending@1": (0, 1), "stock@1": (0, 0)}
    assert inside(store, "verify", "--now", "2024-05-04T00:00:00Z").code == 0


def test_views_names_the_views_that_are_meant(inside: Run, store: Path) -> None:
    assert materialized(inside, store, "--views", "stock") == {"stock@1": (0, 0)}
    assert materialized(inside, store, "--views", "stock@1", "--views", "spending") == {
        "stock@1": (0, 0),
        "spending@1": (0, 0),
    }


def test_load_only_leaves_the_online_store_and_publish_only_the_sources(inside: Run, store: Path) -> None:
    write_spending(store, [*SPENDING, (4, at("02 08:00"), at("02 08:00"), 7.0, "new")])
    online = Contents.of(store).online
    assert materialized(inside, store, "--publish-only") == {"spending@1": (None, 0), "stock@1": (None, 0)}
    assert materialized(inside, store, "--load-only") == {"spending@1": (1, None), "stock@1": (0, None)}
    assert Contents.of(store).online == online
    pending = inside(store, "verify", "--json", "--now", NOW).ok().json
    assert [view["pending"] for view in pending["views"]] == [1, 0]
    assert materialized(inside, store, "--publish-only") == {"spending@1": (None, 1), "stock@1": (None, 0)}
    assert Contents.of(store).online != online


def test_materialize_loads_a_span_of_event_times(inside: Run, tmp_path: Path) -> None:
    folder = shop.declare_shop(tmp_path / "shop")
    inside(folder, "apply").ok()
    span = ["materialize", "2024-05-01T08:00:00Z", "2024-05-01T09:00:00Z", "--json", "--now", NOW]
    assert loads(inside(folder, *span)) == {"spending@1": (1, 1), "stock@1": (0, 0)}
    rest = ["materialize", "2024-05-01T00:00:00Z", "2024-05-03T00:00:00Z", "--json", "--now", NOW]
    assert loads(inside(folder, *rest)) == {"spending@1": (5, 3), "stock@1": (3, 3)}


# ------------------------------------------------------------------ training sets


def trained(inside: Run, folder: Path, *arguments: str, out: str = "t.parquet") -> pa.Table:
    """The training set that the command wrote, as a table."""
    inside(folder, "get-historical-features", *arguments, "--out", out).ok()
    read = {".parquet": pq.read_table, ".arrow": feather.read_table, ".csv": pa_csv.read_csv}
    return read[Path(out).suffix](folder / out)


def answers(table: pa.Table, names: tuple[str, ...] = ("spent", "tier", "left", "price")) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_a_spine_of_any_format_gives_the_same_training_set(inside: Run, store: Path, suffix: str) -> None:
    spine = f"asked{suffix}"
    write = {".parquet": pq.write_table, ".arrow": feather.write_feather, ".csv": pa_csv.write_csv}
    write[suffix](spine_table(), store / spine)
    table = trained(inside, store, *BASKET, "--spine", spine)
    assert table.column_names == ["customer_id", "shop", "sku", "hour", "as_of", "spent", "tier", "left", "price"]
    assert answers(table) == shop.TRAINING
    assert table.select(["customer_id", "shop", "as_of"]).equals(spine_table().select(["customer_id", "shop", "as_of"]))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_a_training_set_of_any_format_comes_out_the_same_when_rebuilt(inside: Run, store: Path, suffix: str) -> None:
    out = f"t{suffix}"
    wrote = inside(store, *TRAIN, "--out", out, "--json").ok().json
    manifest = json.loads((store / f"{out}.manifest.json").read_text())
    assert manifest["digest"]["sha256"] == wrote["digest"]
    assert {ref: view["position"] for ref, view in manifest["views"].items()} == {"spending@1": 6, "stock@1": 3}
    verify = ["get-historical-features", "--verify-manifest", f"{out}.manifest.json"]
    assert inside(store, *verify).ok().out.endswith("built again, equal to the last bit\n")
    assert inside(store, *verify, "--json").ok().json == {
        "manifest": f"{out}.manifest.json",
        "equal": True,
        "differences": [],
    }


def test_a_training_set_stays_the_same_after_history_has_grown(inside: Run, store: Path) -> None:
    inside(store, *TRAIN, "--out", "t.parquet").ok()
    write_spending(store, [(1, at("01 09:00"), at("01 09:00"), 77.0, "new"), *SPENDING])
    assert materialized(inside, store)["spending@1"][0] == 1
    assert inside(store, "get-historical-features", "--verify-manifest", "t.parquet.manifest.json").code == 0
    assert answers(trained(inside, store, *BASKET, "--spine", "spine.parquet", out="again.parquet"))[0][0] == 77.0


def test_a_changed_spine_is_told_with_exit_code_1(inside: Run, store: Path) -> None:
    inside(store, *TRAIN, "--out", "t.parquet").ok()
    pq.write_table(spine_table().slice(1), store / "spine.parquet")
    changed = inside(store, "get-historical-features", "--verify-manifest", "t.parquet.manifest.json")
    assert changed.code == 1
    assert "the training set comes out otherwise:" in changed.out
    assert "the spine holds other rows than when the training set was made" in changed.out
    assert "5 rows were recorded, 4 came out" in changed.out
    told = inside(store, "get-historical-features", "--verify-manifest", "t.parquet.manifest.json", "--json")
    assert (told.code, told.json["equal"], len(told.json["differences"])) == (1, False, 3)


def test_event_timestamp_stands_in_for_as_of(inside: Run, store: Path) -> None:
    names = [{"as_of": "event_timestamp"}.get(name, name) for name in spine_table().column_names]
    pq.write_table(spine_table().rename_columns(names), store / "spine.parquet")
    table = trained(inside, store, *BASKET, "--spine", "spine.parquet")
    assert answers(table) == shop.TRAINING
    assert table.column_names[:5] == names


def test_as_of_asks_for_every_entity_known_then(inside: Run, store: Path) -> None:
    table = trained(inside, store, "--service", "loyalty", "--as-of", "2024-05-01T10:30:00Z")
    assert table.select(["customer_id", "total", "tier"]).to_pylist() == [
        {"customer_id": 1, "total": 30.25, "tier": "gold"},
        {"customer_id": LARGE, "total": 99.0, "tier": "new"},
    ]
    rebuilt = inside(store, "get-historical-features", "--verify-manifest", "t.parquet.manifest.json")
    assert rebuilt.code == 0


def test_knowledge_event_ignores_when_a_row_became_known(inside: Run, store: Path) -> None:
    table = trained(inside, store, *BASKET, "--spine", "spine.parquet", "--knowledge", "event")
    assert answers(table) == shop.TRAINING_BY_EVENT
    assert json.loads((store / "t.parquet.manifest.json").read_text())["knowledge"] == "event"


def test_knowledge_as_served_knows_nothing_before_the_publish_and_everything_after(inside: Run, store: Path) -> None:
    served = ("--knowledge", "as_served", "--with-status")
    table = trained(inside, store, *BASKET, "--spine", "spine.parquet", *served)
    # All of the shop's rows were published at once, after the last row of the spine.
    assert set(table.column("spending__status").to_pylist()) == {"NOT_FOUND"}
    later = spine_table()
    later = later.set_column(
        later.column_names.index("as_of"),
        "as_of",
        pa.array([datetime.fromisoformat(shop.NOW)] * later.num_rows, later.schema.field("as_of").type),
    )
    pq.write_table(later, store / "later.parquet")
    by_then = trained(inside, store, *BASKET, "--spine", "later.parquet")

    now = trained(inside, store, *BASKET, "--spine", "later.parquet", *served)

    assert answers(now) == answers(by_then)
    assert "PRESENT" in now.column("spending__status").to_pylist()
    # The shop's clock stands still: the publish began and ended at the very instant that is asked for.
    assert set(now.column("spending__uncertain").to_pylist()) == {True}
    assert len(json.loads((store / "t.parquet.manifest.json").read_text())["publishes"]["spending@1"]) == 1
    assert inside(store, "get-historical-features", "--verify-manifest", "t.parquet.manifest.json").code == 0


def test_full_feature_names_begin_with_the_view(inside: Run, store: Path) -> None:
    table = trained(inside, store, *BASKET, "--spine", "spine.parquet", "--full-feature-names")
    names = ("spending__spent", "spending__tier", "stock__left", "stock__price")
    assert answers(table, names) == shop.TRAINING


def test_with_status_says_of_each_view_what_became_of_a_row(inside: Run, store: Path) -> None:
    table = trained(inside, store, *BASKET, "--spine", "spine.parquet", "--with-status")
    assert table.column("spending__status").to_pylist() == ["PRESENT", "PRESENT", *["NOT_FOUND"] * 3]
    assert table.column("stock__status").to_pylist() == ["PRESENT", "PRESENT", "NOT_FOUND", "PRESENT", "EXPIRED"]
    assert table.column("spending__age_us").to_pylist() == [90 * 60_000_000, 360 * 60_000_000, None, None, None]


def test_features_are_taken_one_by_one_in_their_order(inside: Run, store: Path) -> None:
    chosen = ["--features", "stock:left,spending@1:total", "--spine", "spine.parquet"]
    table = trained(inside, store, *chosen)
    assert table.column_names[-2:] == ["left", "total"]
    assert answers(table, ("total", "left")) == [(spent, left) for spent, _, left, _ in shop.TRAINING]


# ------------------------------------------------------------------ lookups


def looked_up(inside: Run, folder: Path, *arguments: str) -> dict[str, list[Any]]:
    return inside(folder, "get-online-features", *arguments, "--json", "--now", NOW).ok().json


def test_several_keys_are_answered_in_their_order(inside: Run, store: Path) -> None:
    keys = [
        f"customer_id={LARGE},shop=porto,sku=7,hour=9",
        "customer_id=1,shop=lisbon,sku=7,hour=9",
        "customer_id=3,shop=faro,sku=1,hour=9",
        f"customer_id={LARGE},shop=porto,sku=7,hour=23",
    ]
    shown = looked_up(inside, store, *BASKET, *(word for key in keys for word in ("--key", key)))
    assert shown["customer_id"] == [LARGE, 1, 3, LARGE]
    assert shown["spent"] == [99.0, 30.25, None, 99.0]
    assert shown["left"] == [3, None, None, 3]
    assert shown["hour"] == [9, 9, 9, 23]
    assert shown["spending__status"] == ["PRESENT", "PRESENT", "NOT_FOUND", "PRESENT"]
    assert shown["stock__status"] == ["PRESENT", "EXPIRED", "NOT_FOUND", "PRESENT"]
    assert shown["spending__event_timestamp"][1:3] == ["2024-05-01T10:00:00Z", None]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv"])
def test_keys_may_come_from_a_file(inside: Run, store: Path, suffix: str) -> None:
    keys = pa.table({"customer_id": [2, LARGE]})
    write = {".parquet": pq.write_table, ".arrow": feather.write_feather, ".csv": pa_csv.write_csv}
    write[suffix](keys, store / f"keys{suffix}")
    shown = looked_up(inside, store, "--service", "loyalty", "--keys", f"keys{suffix}")
    assert (shown["total"], shown["tier"]) == ([5.0, 99.0], [None, "new"])


def test_rows_older_than_max_age_are_stale_and_keep_their_values(inside: Run, store: Path) -> None:
    keys = ["--features", "spending:total", "--key", "customer_id=1"]
    assert looked_up(inside, store, *keys, "--max-age", "93600")["spending__status"] == ["PRESENT"]
    stale = looked_up(inside, store, *keys, "--max-age", "93599.999999")
    assert (stale["spending__status"], stale["total"]) == (["STALE"], [30.25])


def test_online_and_offline_answers_agree(inside: Run, store: Path) -> None:
    """Every entity known at NOW, by lookup and by a training set as of NOW."""
    offline = trained(inside, store, "--service", "loyalty", "--as-of", NOW)
    pq.write_table(offline.select(["customer_id"]), store / "keys.parquet")
    online = looked_up(inside, store, "--service", "loyalty", "--keys", "keys.parquet")
    assert offline.num_rows == 3
    for name in ("customer_id", "total", "tier"):
        assert online[name] == offline.column(name).to_pylist()


# ------------------------------------------------------------------ settings, and the end


def test_config_shows_the_file_the_environment_and_the_defaults(inside: Run, store: Path) -> None:
    shown = inside(store, "config", "--json", FEATURESTORE_SERVING_PORT="7000").ok().json
    assert (shown["project"], shown["offline"]["wait_s"], shown["serving"]["port"]) == ("shop", 0.3, 7000)
    assert shown["online"] == {"kind": "sqlite", "path": "data/online.db"}


def test_teardown_removes_rows_and_definitions_and_leaves_a_repository_to_begin_anew(inside: Run, store: Path) -> None:
    before = Contents.of(store)
    asked = inside(store, "teardown")
    assert (asked.code, asked.out) == (2, "")
    assert "spending@1" in asked.err
    assert "pass --yes to do it" in asked.err
    before.assert_kept(store)
    inside(store, "teardown", "--yes").ok()
    after = Contents.of(store)
    assert after.online["online_row"] == []
    assert [name for name, rows in after.history.items() if rows] == []
    assert after.registry["definitions"] == []
    assert [row["state"] for row in inside(store, "list", "applies", "--json").json] == ["done", "done"]
    inside(store, "apply").ok()
    assert materialized(inside, store) == {"spending@1": (6, 3), "stock@1": (3, 3)}
    assert inside(store, "verify", "--now", NOW).code == 0


def test_a_command_works_on_the_repository_that_C_names(cli: Run, store: Path, tmp_path: Path) -> None:
    """Paths of the command line belong to the folder it is run in, those of settings to the repository."""
    shutil.copy(store / "spine.parquet", tmp_path / "asked.parquet")
    where = ["-C", "shop", "get-historical-features", *BASKET, "--spine", "asked.parquet", "--out", "t.parquet"]
    cli(tmp_path, *where).ok()
    assert answers(pq.read_table(tmp_path / "t.parquet")) == shop.TRAINING
