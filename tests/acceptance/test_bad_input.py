"""Definitions, sources and spines that are wrong: told in words, with place and way out, and all is left as it was.

The exit code is 2. What is wrong on the command line stands in test_bad_commands.py; what comes from outside (a full
disk, Ctrl-C, other processes) in test_interruptions.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.shop import (
    FILES,
    NOW,
    SPENDING,
    SPENDING_SCHEMA,
    at,
    rows_table,
    spine_table,
    write_spending,
)
from tests.fix_cli import Contents, Run, assert_refused, assert_told


def edit(folder: Path, name: str, *changes: tuple[str, str]) -> None:
    """Change texts of a file of the shop; a file that is not there is made."""
    text = FILES.get(name, "")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new) if old else new
    (folder / name).write_text(text, encoding="utf-8")


# ------------------------------------------------------------------ definitions

ENTITIES, VIEWS, SERVICES = "definitions/entities.py", "definitions/views.py", "definitions/services.py"
MORE = "definitions/zz_more.py"
TTL = "ttl=timedelta(days=1)"
#: name -> (file, text, what stands there instead, words of the report).
DEFINITIONS: dict[str, tuple[str, str, str, list[str]]] = {
    "a field that its view lacks": (
        SERVICES,
        "stock]",
        'stock["prize"]]',
        [f"{SERVICES}:", "'prize'", "did you mean 'price'?"],
    ),
    "a fill of a field that is not selected": (
        SERVICES,
        '"total", "tier"',
        '"totl", "tier"',
        [f"{SERVICES}:6: ValueError: spending selects no field 'total'; selected: tier, totl"],
    ),
    "a view declared twice": (
        MORE,
        "",
        "from dataclasses import replace\nfrom definitions.views import stock\nagain = replace(stock)\n",
        [f"{MORE}:3: feature view 'stock@1' is declared twice (first at definitions/views.py:17)"],
    ),
    "an entity declared twice": (
        MORE,
        "",
        'from featurestore import *\n\ncustomer = Entity(name="customer", join_keys={"id": Int64})\n',
        [f"{MORE}:3: entity 'customer' is declared twice (first at definitions/entities.py:3)"],
    ),
    "a field declared twice": (
        VIEWS,
        'name="price"',
        'name="left"',
        ["'left' is declared twice", "rename one of them"],
    ),
    "a field called like a join key": (VIEWS, 'name="left"', 'name="sku"', ["'sku' is a join key too"]),
    "two columns of one name in a service": (
        SERVICES,
        'total="spent"',
        'total="left"',
        [f"{SERVICES}:4: ", "'left'"],
    ),
    "a ttl of zero": (
        VIEWS,
        TTL,
        "ttl=timedelta(0)",
        [f"{VIEWS}:17: feature view 'stock': ttl=0s is not positive"],
    ),
    "a negative ttl": (VIEWS, TTL, "ttl=timedelta(days=-1)", ["ttl=-1d is not positive", "or None, which"]),
    "a ttl that is a number": (VIEWS, TTL, "ttl=3600", ["ttl=3600 is not a duration", "ttl=timedelta("]),
    "an argument that does not exist": (
        VIEWS,
        TTL,
        "tll=None",
        [f"{VIEWS}:17: FeatureView has no argument 'tll'", "'ttl'"],
    ),
    "a join key of a type that is none": (
        ENTITIES,
        "Int64}",
        "featurestore.Float64}",
        [f"{ENTITIES}:4: entity 'customer': join key 'customer_id' is a float64", "a join key is one of bool, int32"],
    ),
    "a name that is not imported": (
        ENTITIES,
        "Int64}",
        "Float64}",
        [f"{ENTITIES}:3: NameError: name 'Float64' is not defined", "mend this line"],
    ),
    "a time zone that does not exist": (
        VIEWS,
        'timestamp_field="counted_at"',
        'timestamp_field="counted_at", timezone="Europe/Lisbin"',
        ["timezone='Europe/Lisbin' is not an IANA time zone", "did you mean 'Europe/Lisbon'"],
    ),
    "a file that raises": (
        MORE,
        "",
        "\n\nraise RuntimeError('boom')\n",
        [f"{MORE}:3: RuntimeError: boom", "mend this line"],
    ),
    "a file that ends the process": (MORE, "", "import sys\nsys.exit(0)\n", [f"{MORE}:2: the file ends the process"]),
    "a file that is no Python": (MORE, "", "def (:\n", [f"{MORE}:1: SyntaxError: "]),
    "an import that fails": (MORE, "", "import nothing_like_it\n", [f"{MORE}:1: ModuleNotFoundError: ", "install"]),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_that_do_not_hold_together_are_told_and_change_nothing(inside: Run, store: Path, name: str) -> None:
    file, old, new, said = DEFINITIONS[name]
    edit(
        store,
        file,
        (old, new),
        *([("from featurestore", "import featurestore\nfrom featurestore")] * ("featurestore." in new)),
    )
    assert_refused(inside, store, ["plan"], said)
    assert_refused(inside, store, ["apply"], said)


def test_all_problems_of_all_files_are_told_at_once(inside: Run, store: Path) -> None:
    edit(store, VIEWS, (TTL, "ttl=timedelta(0)"), ('"new", "gold"', '"new", "new"'), ("ge=0, desc", 'ge="no", desc'))
    edit(store, SERVICES, ("stock]", 'stock["prize"]]'), ("ge=0, le=23", "ge=23, le=0"))
    edit(store, MORE, ("", "1 / 0\n"))
    before = Contents.of(store)
    done = inside(store, "apply", "--json")
    problems = done.error["problems"]
    assert done.code == 2
    assert [(problem["path"], problem["line"]) for problem in problems] == sorted(
        (problem["path"], problem["line"]) for problem in problems
    )
    found = {(problem["path"], problem["line"]) for problem in problems}
    assert found >= {(VIEWS, 10), (VIEWS, 11), (VIEWS, 17), (SERVICES, 6), (SERVICES, 7), (MORE, 1)}
    assert all(problem["what"] and problem["way_out"] for problem in problems)
    before.assert_kept(store)


# ------------------------------------------------------------------ an apply that would break readers

SERVICE_2 = ("features=[spending]", "features=[spending_2]")
VERSION_2 = (
    "stock = FeatureView(",
    "spending_2 = replace(spending, version=2, schema=[*spending.schema, "
    'Field(name="points", dtype=Int32)])\nstock = FeatureView(',
)
REPLACE = ("from datetime import timedelta", "from dataclasses import replace\nfrom datetime import timedelta")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (TTL, "ttl=timedelta(days=2)", ["ttl 1d -> 2d", "version=2"]),
        ('name="price", dtype=Float32', 'name="price", dtype=Float64', ["price", "float32", "float64", "version=2"]),
        ('Field(name="tier", dtype=String, allowed_values=["new", "gold"]),', "", ["tier"]),
        ('"new", "gold"', '"new"', ["allowed", "version=2"]),
    ],
    ids=["ttl", "type", "removed field", "narrowed values"],
)
def test_a_breaking_change_asks_for_a_new_version(
    inside: Run, store: Path, old: str, new: str, said: list[str]
) -> None:
    edit(store, VIEWS, (old, new))
    if not new:
        edit(store, SERVICES, ('[["total", "tier"]]', '[["total"]]'))
    planned = inside(store, "plan").ok()
    assert "breaking" in planned.out
    assert "apply would refuse" in planned.out
    assert_refused(inside, store, ["apply"], ["apply refuses, and changed nothing", *said])


def test_a_view_with_history_is_not_dropped_unasked(inside: Run, store: Path) -> None:
    edit(store, SERVICES, (", stock]", "]"), ("import spending, stock", "import spending"))
    text = (store / VIEWS).read_text()
    (store / VIEWS).write_text(text[: text.index("stock = FeatureView(")].replace("customer, stock_item", "customer"))
    assert_refused(inside, store, ["apply"], ["stock@1", "3 rows", "--allow-data-loss", "--allow-in-use"])
    inside(store, "apply", "--allow-data-loss", "--allow-in-use").ok()
    assert [view["feature_view"] for view in inside(store, "list", "feature-views", "--json").json] == ["spending@1"]


def test_a_service_moves_to_an_unpublished_version_only_when_told_to(inside: Run, store: Path) -> None:
    edit(store, VIEWS, REPLACE, VERSION_2)
    edit(store, SERVICES, SERVICE_2, ("import spending, stock", "import spending, spending_2, stock"))
    assert_refused(inside, store, ["apply"], ["loyalty", "spending@2", "--allow-empty"])
    inside(store, "apply", "--allow-empty").ok()
    answer = inside(store, "get-online-features", "--service", "loyalty", "--key", "customer_id=1", "--json").ok().json
    assert answer["spending__status"] == ["NOT_FOUND"]


# ------------------------------------------------------------------ sources

GOOD = (5, at("02 09:00"), at("02 09:00"), 8.0, "new")
LOAD = ["materialize-incremental", "--views", "spending", "--now", NOW]


def changed_source(**columns: Any) -> pa.Table:
    """The spending source with a good row more, and columns replaced (None: left out)."""
    table = rows_table([*SPENDING, GOOD], SPENDING_SCHEMA)
    for name, change in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if change is None else table.set_column(place, name, change(table[name]))
    return table


def naive(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us"))


SOURCES: dict[str, tuple[pa.Table, list[str]]] = {
    "a field is missing": (
        changed_source(total=None),
        ["feature view spending@1", "sources/spending.parquet lacks the column 'total'", "it has: customer_id, at,"],
    ),
    "the key is missing": (changed_source(customer_id=None), ["lacks the column 'customer_id'"]),
    "the event time is missing": (changed_source(at=None), ["lacks the column 'at'"]),
    "a type does not fit": (
        changed_source(total=lambda column: column.cast(pa.string())),
        ["spending@1", "column 'total' holds string, declared is float64", "convert the column in the source"],
    ),
    "a key is a float": (
        changed_source(customer_id=lambda column: column.cast(pa.float64(), safe=False)),
        ["column 'customer_id' holds double, declared is int64"],
    ),
    "event times are naive": (
        changed_source(at=naive),
        ["column 'at' holds timestamps without a time zone", 'timezone="America/New_York"'],
    ),
    "created times are naive": (changed_source(known=naive), ["column 'known' holds timestamps without a time zone"]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_not_as_declared_is_told_and_nothing_of_it_is_kept(
    inside: Run, store: Path, name: str
) -> None:
    table, said = SOURCES[name]
    pq.write_table(table, store / "sources" / "spending.parquet")
    assert_load_fails(inside, store, said)


def assert_load_fails(inside: Run, store: Path, said: list[str]) -> None:
    """The load fails with these words, keeps what was there, is logged, and goes on once the source is well."""
    before = Contents.of(store)
    assert_told(inside(store, *LOAD), 2, said)
    before.assert_kept(store)
    failed = inside(store, "list", "runs", "--json").json[0]
    assert failed["state"] == "failed"
    assert said[-1] in failed["error"]
    write_spending(store, [*SPENDING, GOOD])
    done = inside(store, *LOAD, "--json").ok().json["views"]["spending@1"]
    assert (done["loaded"]["added"], done["published"]["rows_written"]) == (1, 1)


@pytest.mark.parametrize("damage", ["garbage", "cut short", "empty", "bytes flipped inside"])
def test_a_damaged_parquet_is_named(inside: Run, store: Path, damage: str) -> None:
    path = store / "sources" / "spending.parquet"
    write_spending(store, [*SPENDING, GOOD] * 50)
    whole = path.read_bytes()
    damaged = {
        "garbage": b"this is no Parquet" * 100,
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "bytes flipped inside": whole[:20] + bytes(byte ^ 0xFF for byte in whole[20:120]) + whole[120:],
    }
    path.write_bytes(damaged[damage])
    assert_load_fails(inside, store, ["spending.parquet cannot be read"])


def test_a_source_that_is_gone_is_named(inside: Run, store: Path) -> None:
    (store / "sources" / "spending.parquet").unlink()
    assert_load_fails(inside, store, ["the source 'sources/spending.parquet' names no file"])


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("faro,1,2024-05-01T06:00:00,1,1.0", ["sources/stock/c.csv, row 0", "counted_at has no exact timestamp value"]),
        ("faro,1,yesterday,1,1.0", ["sources/stock/c.csv, row 0", "counted_at has no exact timestamp value"]),
        ("faro,1,2024-05-01T06:00:00Z,ten,1.0", ["sources/stock/c.csv, row 0", "left has no exact int32 value"]),
        ("faro,1,2024-05-01T06:00:00Z,-1,1.0", ["left:ge (1 rows)", 'on_violation="quarantine"']),
        ("faro,,2024-05-01T06:00:00Z,1,1.0", ["sku is null"]),
    ],
    ids=["naive time", "no time", "no number", "bound", "no key"],
)
def test_a_batch_with_a_bad_row_is_rejected_whole(inside: Run, store: Path, cells: str, said: list[str]) -> None:
    """The view `stock` rejects; a good row stands beside the bad one."""
    before = Contents.of(store)
    added = store / "sources" / "stock" / "c.csv"
    added.write_text(f"shop,sku,counted_at,left,price\n{cells}\nfaro,2,2024-05-01T06:00:00Z,1,1.0\n")
    assert_told(inside(store, "materialize-incremental", "--views", "stock", "--now", NOW), 2, said)
    before.assert_kept(store)


def test_a_csv_whose_times_are_all_naive_is_told_to_declare_its_zone(inside: Run, store: Path) -> None:
    before = Contents.of(store)
    added = store / "sources" / "stock" / "c.csv"
    added.write_text("shop,sku,counted_at,left,price\nfaro,1,2024-05-01T06:00:00,1,1.0\n")
    said = ["column 'counted_at' holds timestamps without a time zone", 'timezone="America/New_York"']
    assert_told(inside(store, "materialize-incremental", "--views", "stock", "--now", NOW), 2, said)
    before.assert_kept(store)


def test_one_view_that_fails_does_not_keep_the_others_from_theirs(inside: Run, store: Path) -> None:
    (store / "sources" / "stock" / "c.csv").write_text("shop,sku\nfaro,1\n")
    write_spending(store, [*SPENDING, GOOD])
    done = inside(store, "materialize-incremental", "--now", NOW)
    assert_told(done, 2, ["sources/stock/c.csv lacks the columns 'counted_at', 'left', 'price'"])
    assert "stock@1 failed: " in done.out
    shown = inside(store, "get-online-features", "--service", "loyalty", "--key", "customer_id=5", "--json")
    assert shown.ok().json["total"] == [8.0]


# ------------------------------------------------------------------ spines

TRAIN = ["get-historical-features", "--service", "basket", "--spine", "bad.parquet", "--out", "t.parquet"]


def spine(**columns: Any) -> pa.Table:
    """The spine with columns replaced, added, or (None) left out."""
    table = spine_table()
    for name, column in columns.items():
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.remove_column(place) if column is None else table.set_column(place, name, column)
        else:
            table = table.append_column(name, column)
    return table


SPINES: dict[str, tuple[pa.Table, list[str]]] = {
    "no time": (spine(as_of=None), ["no column as_of (nor event_timestamp)", "it has: customer_id, shop, sku, hour"]),
    "naive times": (
        spine(as_of=naive(spine_table()["as_of"])),
        ["spine column 'as_of' holds timestamps without a time zone"],
    ),
    "a time that is null": (
        spine(as_of=pa.array([None, *spine_table()["as_of"].to_pylist()[1:]], pa.timestamp("us", "UTC"))),
        ["spine column 'as_of', row 0 is null"],
    ),
    "a key left out": (spine(sku=None), ["the spine lacks the join key 'sku'"]),
    "a key misspelt": (
        spine_table().rename_columns(["custmer_id", "shop", "sku", "hour", "as_of"]),
        ["lacks the join key 'customer_id'", "did you mean 'custmer_id'?"],
    ),
    "float keys": (
        spine(customer_id=pa.array([1.0, 1.0, 2.0, 3.0, None])),
        ["spine column 'customer_id' holds double, declared is int64", "pandas turns integers with nulls into floats"],
    ),
    "a key of another type": (spine(shop=pa.array([1, 2, 3, 4, 5])), ["spine column 'shop' holds int64"]),
    "a key out of range": (
        spine(sku=pa.array([7, 7, 7, 2**40, 8])),
        ["spine column 'sku', row 3: 1099511627776 has no exact int32 value"],
    ),
    "a request field left out": (spine(hour=None), ["lacks the request field 'hour' of service 'basket'"]),
    "a request field out of bounds": (
        spine(hour=pa.array([1, 2, 3, 24, 5], pa.int32())),
        ["spine column 'hour', row 3: hour is above the greatest allowed 23"],
    ),
    "a column that the service gives": (
        spine(spent=pa.array([0] * 5)),
        ["the spine already has a column 'spent'", "full feature names"],
    ),
    "a column twice": (
        pa.table([*spine_table().columns, pa.array([1] * 5)], names=[*spine_table().column_names, "sku"]),
        ["several columns named sku"],
    ),
}


@pytest.mark.parametrize("name", SPINES)
def test_a_spine_that_cannot_ask_is_told_and_nothing_is_written(inside: Run, store: Path, name: str) -> None:
    table, said = SPINES[name]
    pq.write_table(table, store / "bad.parquet")
    files = sorted(store.iterdir())
    assert_refused(inside, store, TRAIN, said)
    assert sorted(store.iterdir()) == files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "customer_id,shop,sku,hour,as_of\n1,lisbon,7,9,2024-05-01T09:30:00\n",
            ["column 'as_of' holds timestamps without a time zone"],
        ),
        (
            "customer_id,shop,sku,hour,as_of\n1.5,lisbon,7,9,2024-05-01T09:30:00Z\n",
            ["bad.csv, column 'customer_id', row 0: 1.5 is no exact int64"],
        ),
        (
            "customer_id,shop,sku,hour,as_of\n1,lisbon,7,9,noon\n",
            ["bad.csv, column 'as_of', row 0: noon is no exact timestamp"],
        ),
        ("customer_id,shop,sku,hour,as_of\n1,lisbon\n", ["bad.csv cannot be read"]),
        ("", ["bad.csv cannot be read"]),
    ],
    ids=["naive time", "fraction", "no time", "short line", "empty"],
)
def test_a_csv_spine_that_cannot_ask_is_told(inside: Run, store: Path, content: str, said: list[str]) -> None:
    (store / "bad.csv").write_text(content)
    assert_refused(inside, store, [*TRAIN[:4], "bad.csv", *TRAIN[5:]], said)
