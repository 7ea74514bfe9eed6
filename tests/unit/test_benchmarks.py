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
import pytest

from benchmarks import flights, load, lookup, machine, measure, point_in_time, selective, startup, world
from benchmarks.__main__ import BENCHMARKS, main, table
from benchmarks.measure import Measured, Result, Setting, Times, Unequal, require_equal
from benchmarks.world import Shape
from featurestore.errors import StoreFull

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


def test_startup_measures_import_and_help(setting: Setting) -> None:
    found = startup.run(setting)

    assert [one.required for one in found.measured] == [startup.IMPORT_S_MAX, startup.HELP_S_MAX]


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
    }
    assert {demand for demand in demands if demand not in guide} == set()
