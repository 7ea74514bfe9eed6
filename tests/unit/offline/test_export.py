"""Exports and manifests: whole or not at all, readable as stated, and the same again when rebuilt from the record."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import featurestore
from featurestore import FeatureView, Field, Int32, Int64, String
from featurestore.digest import content_digest
from featurestore.errors import InputError
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.offline.manifest import differences, read_manifest
from featurestore.offline.rebuild import rebuild
from featurestore.offline.sources import read_table
from featurestore.offline.training_set import TrainingSet
from tests.fix_offline import PROJECT, VALUES, append, make_view, select, times, training_set, value_columns
from tests.oracle import Row

ROOT = Path(__file__).resolve().parents[3]
LEG = make_view({"carrier": String}, {"delay": Int64, "seats": Int32}, ttl_us=50)
SPINE = pa.table({"carrier": ["AA", "UA", None, "AA"], "as_of": times([10, 11, 12, 13]), "label": [1, 0, 1, 0]})
FORMATS = (".parquet", ".arrow", ".csv")


def leg(key: str, event: int, value: tuple[Any, ...], sequence: int = 1) -> Row:
    return Row(keys=(key,), event=event, created=event, sequence=sequence, value=value)


@pytest.fixture
def store(tmp_path: Path) -> DuckDBOfflineStore:
    made = DuckDBOfflineStore(tmp_path / "offline.duckdb", PROJECT)
    made.ensure_history(LEG)
    append(made, LEG, [leg("AA", 5, (7, None)), leg("UA", 6, (None, 3))])
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


def made(store: DuckDBOfflineStore, spine: object = SPINE, **more: Any) -> TrainingSet:
    return training_set(store, select(LEG), [LEG], spine, **more)


def everything() -> pa.Table:
    return pa.table(value_columns(make_view(), list(VALUES)))


def with_table(training: TrainingSet, table: pa.Table) -> TrainingSet:
    return replace(training, table=table)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_parquet_and_arrow_read_back_with_the_same_digest(store: DuckDBOfflineStore, folder: Path, suffix: str) -> None:
    training = with_table(made(store), everything())

    path = training.write(folder / f"set{suffix}")

    assert content_digest(read_table(path)) == content_digest(everything())


def test_csv_reads_back_to_the_bit_when_its_types_are_given(store: DuckDBOfflineStore, folder: Path) -> None:
    table = everything().drop_columns(["some_bytes", "some_floats", "some_strings", "a_vector"])

    path = with_table(made(store), table).write(folder / "set.csv")

    options = pa_csv.ConvertOptions(
        column_types=table.schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    assert content_digest(pa_csv.read_csv(path, convert_options=options)) == content_digest(table)


def test_csv_writes_what_its_statement_says(store: DuckDBOfflineStore, folder: Path) -> None:
    nan, inf = float("nan"), float("inf")
    table = pa.table(
        {
            "text": [None, "", 'a "b", c'],
            "number": [nan, inf, -inf],
            "zero": [-0.0, 0.1, None],
            "at": times([-1, 0, 1_385_874_000_000_000]),
            "raw": pa.array([b"\xff", b"", None]),
            "fixed": pa.array([b"ab", None, b"\0\0"], pa.binary(2)),
            "floats": [[nan, -inf, 0.5], [], None],
            "texts": [["é", ""], None, []],
            "raws": pa.array([[b"\xff"], None, []], pa.list_(pa.binary())),
            "times": pa.array([[-62_135_596_800_000_000], [0], None], pa.list_(pa.timestamp("us", "UTC"))),
        }
    )

    lines = with_table(made(store), table).write(folder / "set.csv").read_text(encoding="utf-8").splitlines()

    assert lines == [
        '"text","number","zero","at","raw","fixed","floats","texts","raws","times"',
        ',nan,-0,1969-12-31 23:59:59.999999Z,"/w==","YWI=","[NaN, -Infinity, 0.5]","[""é"", """"]","[""/w==""]",'
        '"[""0001-01-01 00:00:00.000000Z""]"',
        '"",inf,0.1,1970-01-01 00:00:00.000000Z,"",,"[]",,,"[""1970-01-01 00:00:00.000000Z""]"',
        '"a ""b"", c",-inf,,2013-12-01 05:00:00.000000Z,,"AAA=",,"[]","[]",',
    ]
    assert read_manifest(folder / "set.csv.manifest.json")["file"]["csv"]["null"] == "an empty cell"


def test_an_unknown_suffix_or_folder_is_refused_before_anything_is_written(
    store: DuckDBOfflineStore, folder: Path
) -> None:
    with pytest.raises(InputError, match=r"set\.txt has no known suffix; write to one of \*\.parquet, "):
        made(store).write(folder / "set.txt")
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        made(store).write(folder / "nowhere" / "set.csv")
    assert list(folder.iterdir()) == []


def test_columns_that_a_format_cannot_hold_leave_the_old_files(store: DuckDBOfflineStore, folder: Path) -> None:
    path = made(store).write(folder / "set.csv")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    uuids = pa.table({"id": pa.array([b"0" * 16], pa.uuid())})

    with pytest.raises(InputError, match=r"set\.csv cannot hold these columns.*another format"):
        with_table(made(store), uuids).write(path)

    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("limit", ["data", "manifest"])
def test_a_full_disk_leaves_the_old_pair_and_no_crumbs(
    store: DuckDBOfflineStore, folder: Path, tmp_path: Path, suffix: str, limit: str
) -> None:
    path = made(store).write(folder / f"set{suffix}")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    data, manifest = before[path.name], before[path.name + ".manifest.json"]
    assert len(manifest) > len(data), "the second limit must let the data through"
    code = f"""
import resource, signal, sys
from pathlib import Path
from featurestore.errors import StoreFull
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_offline import PROJECT
from tests.unit.offline.test_export import made
training = made(DuckDBOfflineStore(Path(sys.argv[1]), PROJECT))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = {len(data) // 2 if limit == "data" else len(manifest) - 100}
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    training.write(sys.argv[2])
except StoreFull as error:
    print(error)
"""

    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "offline.duckdb"), str(path)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "File too large; nothing was changed there" in answer.stdout, answer.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# ------------------------------------------------------------------ manifests


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_manifest_says_what_the_set_was_made_of(store: DuckDBOfflineStore, folder: Path, suffix: str) -> None:
    import duckdb

    pq.write_table(SPINE, folder / "spine.parquet")
    training = made(store, folder / "spine.parquet", knowledge="event", with_status=True)
    path = training.write(folder / f"set{suffix}")

    manifest = read_manifest(folder / f"set{suffix}.manifest.json")

    service = select(LEG)
    assert manifest["project"] == PROJECT
    assert manifest["service"]["definition"] == definition_fingerprint(service)
    assert manifest["service"]["signature"] == service_signature(service, {LEG.ref: LEG})
    assert manifest["views"]["leg@1"]["definition"] == definition_fingerprint(LEG)
    assert manifest["views"]["leg@1"]["position"] == 2
    assert (manifest["knowledge"], manifest["with_status"], manifest["full_feature_names"]) == ("event", True, False)
    assert manifest["spine"] == {
        "path": "spine.parquet",
        "as_of": None,
        "as_of_column": "as_of",
        "rows": 4,
        "columns": ["carrier", "as_of", "label"],
        "digest": content_digest(SPINE),
    }
    assert manifest["rows"] == 4
    assert [column["name"] for column in manifest["columns"]] == training.table.column_names
    assert manifest["digest"] == {"version": "featurestore-content/1", "sha256": training.digest}
    assert manifest["engines"]["offline"] == f"duckdb {duckdb.__version__}"
    assert manifest["engines"]["featurestore"] == featurestore.__version__
    assert manifest["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest["file"]["name"], manifest["file"]["bytes"]) == (path.name, path.stat().st_size)


def again(store: DuckDBOfflineStore, manifest: Path, spine: object = None) -> list[str]:
    recorded = read_manifest(manifest)
    return differences(recorded, rebuild(store, recorded, manifest, spine))


@pytest.mark.parametrize(
    ("kind", "suffix"), [*(("file", suffix) for suffix in FORMATS), ("memory", ".parquet"), ("memory", ".arrow")]
)
def test_a_rebuild_comes_out_the_same_after_rows_and_definitions_moved_on(
    store: DuckDBOfflineStore, folder: Path, suffix: str, kind: str
) -> None:
    pq.write_table(SPINE, folder / "spine.parquet")
    training = made(store, folder / "spine.parquet" if kind == "file" else SPINE, with_status=True)
    path = training.write(folder / f"set{suffix}")
    append(store, LEG, [leg("AA", 5, (8, 8), sequence=10), leg("AA", 9, (9, 9), sequence=11)])
    today: FeatureView = replace(LEG, schema=[*LEG.schema, Field(name="gate", dtype=String, default="?")], ttl=None)
    store.ensure_history(today)
    assert made(store).table.column("delay").to_pylist() == [9, None, None, 9], "today it would come out otherwise"

    assert again(store, Path(f"{path}.manifest.json")) == []


def test_a_rebuild_takes_request_fields_as_the_spine_had_them(store: DuckDBOfflineStore, folder: Path) -> None:
    service = select(LEG, request_fields=[Field(name="label", dtype=Int32)])
    training = training_set(store, service, [LEG], SPINE)
    path = training.write(folder / "set.parquet")

    assert again(store, Path(f"{path}.manifest.json")) == []


def test_what_changed_is_said_in_words(store: DuckDBOfflineStore, folder: Path) -> None:
    path = made(store).write(folder / "set.parquet")
    manifest = Path(f"{path}.manifest.json")

    other = SPINE.set_column(2, "label", pa.array([1, 1, 1, 1]))
    assert again(store, manifest, other) == [
        "the spine holds other rows than when the training set was made",
        "the content differs",
    ]
    assert "4 rows were recorded, 3 came out" in again(store, manifest, SPINE.slice(1))

    store.drop_history(LEG.ref)
    store.ensure_history(LEG)
    append(store, LEG, [leg("AA", 5, (70, None))])
    assert again(store, manifest) == ["the content differs"]


def test_a_rebuild_without_any_spine_says_how_to_give_one(store: DuckDBOfflineStore, folder: Path) -> None:
    path = made(store).write(folder / "set.parquet")
    path.unlink()

    with pytest.raises(InputError, match="pass --spine"):
        again(store, Path(f"{path}.manifest.json"))
    assert again(store, Path(f"{path}.manifest.json"), SPINE) == []


def test_a_csv_cannot_lend_the_spine_that_was_handed_over_in_memory(store: DuckDBOfflineStore, folder: Path) -> None:
    path = made(store).write(folder / "set.csv")

    with pytest.raises(InputError, match=r"set\.csv does not keep its types; pass --spine"):
        again(store, Path(f"{path}.manifest.json"))
    assert again(store, Path(f"{path}.manifest.json"), SPINE) == []


def test_a_set_whose_spine_columns_were_changed_by_hand_is_found_out(store: DuckDBOfflineStore, folder: Path) -> None:
    path = made(store).write(folder / "set.parquet")
    table = read_table(path)
    pq.write_table(table.set_column(2, "label", pa.array([1, 1, 1, 1])), path)

    assert again(store, Path(f"{path}.manifest.json")) == ["the content differs"]


@pytest.mark.parametrize("text", ["not json", "[]", json.dumps({"format": "other/9"}), "\xff"])
def test_what_is_no_manifest_is_named(folder: Path, text: str) -> None:
    file = folder / "x.manifest.json"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(InputError, match=r"x\.manifest\.json is not a manifest"):
        read_manifest(file)
    with pytest.raises(InputError, match=r"there is no manifest .*none\.json"):
        read_manifest(folder / "none.json")


def test_a_manifest_with_parts_missing_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet.manifest.json"
    path.write_text('{"format": "featurestore-manifest/1", "project": "p"}')

    with pytest.raises(InputError, match=r"lacks made_at, service, views"):
        read_manifest(path)


def test_an_as_served_manifest_needs_its_publish_log(store: DuckDBOfflineStore, folder: Path) -> None:
    path = Path(f"{made(store).write(folder / 'set.parquet')}.manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["publishes"]
    path.write_text(json.dumps(manifest))
    read_manifest(path)

    path.write_text(json.dumps({**manifest, "knowledge": "as_served"}))
    with pytest.raises(InputError, match="lacks publishes; take the one that was written"):
        read_manifest(path)
