"""Commands, settings and files that cannot be what is meant: told in words, and nothing is changed.

Exit code 2 for input, 3 for a store that cannot be used.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.shop import NOW, declare_shop
from tests.fix_cli import Contents, Run, assert_refused, assert_told

# ------------------------------------------------------------------ the command line

BASKET = ["--service", "basket"]
ONLINE = ["get-online-features", *BASKET]
KEY = ["--key", "customer_id=1,shop=lisbon,sku=7,hour=9"]
ASKED = ["get-historical-features", *BASKET, "--spine", "spine.parquet"]
WINDOW = ["2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"]
Commands = list[tuple[list[str], list[str]]]
COMMANDS: dict[str, Commands] = {
    "registry": [
        (["materialise"], ["no command named 'materialise'; did you mean 'materialize'?"]),
        (["apply", "--force"], ["unrecognized arguments: --force", "featurestore apply --help"]),
        (["list", "views"], ["'views'", "feature-views"]),
        (["list", "runs", "--limit", "-1"], ["--limit", "'-1' is not a number from 1 to"]),
        (["describe", "feature-view", "stok"], ["no feature view named 'stok'; did you mean 'stock"]),
        (["describe", "apply", "9" * 30], ["is not the number of an apply", "featurestore list applies"]),
        (["verify", "--service", "baskt"], ["no feature service named 'baskt'; did you mean 'basket'?"]),
    ],
    "materialization": [
        (["materialize", *WINDOW[::-1]], ["START must be earlier than END"]),
        (["materialize", WINDOW[0], WINDOW[0]], ["START must be earlier than END"]),
        (["materialize", WINDOW[0]], ["the following arguments are required: END"]),
        (["materialize", "2024-05-01", "2024-05-02"], ["START: 2024-05-01T00:00:00 has no time zone"]),
        (
            ["materialize", WINDOW[0], "2024-13-45"],
            ["END: '2024-13-45' is not a time; write it as 2013-12-01T05:00:00Z"],
        ),
        (["materialize-incremental", "tomorrow"], ["END: 'tomorrow' is not a time"]),
        (["materialize-incremental", "--views", "stok"], ["no feature view named 'stok'"]),
        (["materialize-incremental", "--load-only", "--publish-only"], ["--publish-only: not allowed with argument"]),
        (["materialize-incremental", "--load-only", "--repair"], ["--repair publishes, --load-only does not"]),
        (["materialize-incremental", "--now", "noon"], ["--now: 'noon' is not a time"]),
        (["materialize-incremental", "9999-12-31T23:59:59-10:00"], ["END: ", "outside the years 1 to 9999"]),
    ],
    "training sets": [
        (["get-historical-features", *BASKET, "--out", "t.csv"], ["pass --spine FILE", "or --as-of TIME"]),
        ([*ASKED], ["pass --out PATH"]),
        ([*ASKED, "--as-of", NOW, "--out", "t.csv"], ["--as-of: not allowed with argument --spine"]),
        ([*ASKED[:3], "--as-of", "2024-05-01", "--out", "t.csv"], ["--as-of: 2024-05-01T00:00:00 has no time zone"]),
        (["get-historical-features", "--spine", "spine.parquet", "--out", "t.csv"], ["nothing is asked for"]),
        ([*ASKED, "--out", "nowhere/t.csv"], ["the folder nowhere does not exist; make it first"]),
        ([*ASKED, "--out", "t.xlsx"], ["t.xlsx has no known suffix", "*.parquet, *.arrow, *.csv"]),
        ([*ASKED, "--out", "t.csv", "--knowledge", "all"], ["invalid choice: 'all'", "created", "event"]),
        ([*ASKED[:3], "--spine", "gone.csv", "--out", "t.csv"], ["there is no file gone.csv"]),
        ([*ASKED[:3], "--spine", "featurestore.toml", "--out", "t.csv"], ["of no known format", ".parquet"]),
        (["get-historical-features", "--service", "bskt", *ASKED[3:], "--out", "t.csv"], ["did you mean 'basket'?"]),
        (
            ["get-historical-features", "--features", "stock", *ASKED[3:], "--out", "t.csv"],
            ["not of the form view:field"],
        ),
        (
            ["get-historical-features", "--features", "stock:lft", *ASKED[3:], "--out", "t.csv"],
            ["did you mean 'left'?"],
        ),
        (
            ["get-historical-features", "--features", "stok:left", *ASKED[3:], "--out", "t.csv"],
            ["feature view", "'stok'"],
        ),
        (["get-historical-features", "--verify-manifest", "gone.json"], ["there is no manifest gone.json"]),
        (["get-historical-features", "--verify-manifest", "spine.parquet"], ["spine.parquet is not a manifest"]),
    ],
    "lookups": [
        (["get-online-features", "--service", "bskt", *KEY], ["did you mean 'basket'?"]),
        (["get-online-features", "--features", "stock:lft", *KEY], ["did you mean 'left'?"]),
        ([*ONLINE], ["--key --keys is required"]),
        ([*ONLINE, "--key", "customer_id"], ["--key 'customer_id' is not of the form NAME=VALUE"]),
        ([*ONLINE, "--key", "customer_id=1,shop=lisbon,hour=9"], ["needs join key 'sku'"]),
        ([*ONLINE, "--key", "customer_id=1,shop=lisbon,sku=7"], ["needs request field 'hour'"]),
        ([*ONLINE, "--key", "custmer_id=1,shop=lisbon,sku=7,hour=9"], ["did you mean 'customer_id'?"]),
        ([*ONLINE, "--key", "customer_id=1.5,shop=lisbon,sku=7,hour=9"], ["'customer_id'", "not int64"]),
        ([*ONLINE, "--key", "customer_id=1,shop=lisbon,sku=7,hour=24"], ["request field 'hour'", "23"]),
        ([*ONLINE, "--key", "customer_id=1,shop=\udcff,sku=7,hour=9"], ["is not valid UTF-8"]),
        ([*ONLINE, "--keys", "gone.csv"], ["there is no file gone.csv"]),
        ([*ONLINE, *KEY, "--max-age", "nan"], ["--max-age", "'nan' is not a number of seconds"]),
        ([*ONLINE, *KEY, "--max-age", "-5"], ["give a duration above zero"]),
    ],
    "serving": [
        (["serve", "--port", "99999"], ["--port", "'99999' is not a number from 0 to 65535"]),
    ],
}


@pytest.mark.parametrize("topic", COMMANDS)
def test_commands_that_cannot_be_carried_out_are_told_and_change_nothing(inside: Run, store: Path, topic: str) -> None:
    before, files = Contents.of(store), sorted(store.iterdir())
    for arguments, said in COMMANDS[topic]:
        done = inside(store, *arguments)
        assert_told(done, 2, said)
        assert done.out == ""
    before.assert_kept(store)
    assert sorted(store.iterdir()) == files


def test_a_publish_does_not_go_back_behind_the_last_horizon(inside: Run, store: Path) -> None:
    before = Contents.of(store)
    done = inside(store, "materialize-incremental", "--now", "2024-05-02T11:59:59Z")
    assert_told(done, 2, ["spending@1 was published as of 2024-05-02T12:00:00+00:00", "a later --now, or --repair"])
    before.assert_kept(store)


def test_a_folder_that_is_no_repository_is_named(cli: Run, tmp_path: Path) -> None:
    done = cli(tmp_path, "plan")
    assert_told(done, 2, [f"no featurestore.toml in {tmp_path}", "-C DIR", "featurestore init DIR"])
    assert list(tmp_path.iterdir()) == []


def test_init_writes_into_no_folder_that_holds_anything(inside: Run, store: Path) -> None:
    files = sorted(store.rglob("*"))
    assert_refused(inside, store, ["init", "."], [f"{store} is not empty; name a new folder"])
    assert_refused(inside, store, ["init", "spine.parquet"], ["is a file; name a new folder"])
    assert_refused(inside, store, ["init", "new", "--template", "large"], ["invalid choice: 'large'"])
    assert sorted(store.rglob("*")) == files


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("setting", "environment", "said"),
    [
        ("[onlin]\n", {}, ["unknown setting 'onlin'; did you mean 'online'?"]),
        ("[online]\npth = 'x'\n", {}, ["unknown setting 'pth' in [online]; did you mean 'path'?"]),
        ("", {"FEATURESTORE_ONLINE_PTH": "x"}, ["environment: unknown setting FEATURESTORE_ONLINE_PTH", "_PATH"]),
        ("", {"FEATURESTORE_SERVING_PORT": "http"}, ["serving.port = 'http'", "FEATURESTORE_SERVING_PORT"]),
        ("", {"FEATURESTORE_PROJECT": "my shop"}, ["project 'my shop': letters, digits and _ only"]),
        ("", {"FEATURESTORE_ONLINE_PATH_FILE": "gone"}, ["FEATURESTORE_ONLINE_PATH_FILE", "gone cannot be read"]),
        ("[online\n", {}, ["featurestore.toml is not valid TOML", "line"]),
        ("[materialization]\nbatch_rows = 0\n", {}, ["materialization.batch_rows = 0"]),
        ("[online]\nkind = 'etcd'\n", {}, ["online.kind = 'etcd'", "'sqlite'", "'redis'"]),
    ],
)
def test_settings_that_are_wrong_are_told_with_their_place(
    inside: Run, store: Path, setting: str, environment: dict[str, str], said: list[str]
) -> None:
    with (store / "featurestore.toml").open("a") as file:
        file.write(setting)
    before = Contents.of(store)
    for command in ("config", "apply", "verify"):
        assert_told(inside(store, command, **environment), 2, said)
    before.assert_kept(store)


def test_definitions_that_are_not_there_are_named(inside: Run, store: Path) -> None:
    with (store / "featurestore.toml").open("a") as file:
        file.write("[definitions]\npath = 'definitons'\n")
    assert_refused(inside, store, ["apply"], ["no folder", "definitons", "[definitions] path"])


def test_several_faults_of_settings_are_told_at_once(inside: Run, store: Path) -> None:
    with (store / "featurestore.toml").open("a") as file:
        file.write("[onlin]\n[serving]\nprt = 1\n")
    assert_told(inside(store, "config", FEATURESTORE_X="1"), 2, ["'onlin'", "'prt'", "FEATURESTORE_X"])


# ------------------------------------------------------------------ files that are no stores

GARBAGE = b"whatever this is, it is no database" * 200


@pytest.mark.parametrize(
    ("file", "commands", "said"),
    [
        (
            "online.db",
            [["verify"], [*ONLINE, *KEY], ["materialize-incremental", "--json"]],
            ["online store", "not a SQLite database", "--repair"],
        ),
        (
            "registry.db",
            [["plan"], ["list", "runs"], ["apply"]],
            ["registry", "is not a readable SQLite file", "backup"],
        ),
        (
            "offline.duckdb",
            [["verify"], [*ASKED, "--out", "t.csv"], ["materialize-incremental", "--json"]],
            ["offline.duckdb is not a DuckDB file", "offline.path"],
        ),
    ],
)
def test_a_file_that_is_no_store_is_named_and_not_touched(
    inside: Run, store: Path, file: str, commands: list[list[str]], said: list[str]
) -> None:
    """A job writes its log and lease in the registry, and only there."""
    path = store / "data" / file
    for side in store.glob(f"data/{file}-*"):
        side.unlink()
    path.write_bytes(GARBAGE)
    for command in commands:
        done = inside(store, *command)
        assert done.code == 3, f"{done.out}\n{done.err}"
        message = done.error["message"] if "--json" in command else done.err
        assert [words for words in said if words not in message] == [], message
        assert "Traceback" not in done.err
    assert path.read_bytes() == GARBAGE


@pytest.mark.parametrize(("file", "command"), [("online.db", "verify"), ("registry.db", "apply")])
def test_the_database_of_another_program_is_not_written_to(
    inside: Run, store: Path, tmp_path: Path, file: str, command: str
) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    setting = {"FEATURESTORE_ONLINE_PATH" if file == "online.db" else "FEATURESTORE_REGISTRY_PATH": str(other)}
    assert_told(inside(store, command, **setting), 3, ["other.db"])
    with closing(sqlite3.connect(other)) as connection:
        assert list(connection.execute("SELECT name FROM sqlite_schema")) == [("photos",)]


def test_commands_before_the_first_apply_say_that_nothing_is_there(inside: Run, tmp_path: Path) -> None:
    folder = declare_shop(tmp_path / "shop")
    assert_told(inside(folder, *ONLINE, *KEY), 2, ["no feature service named 'basket'; none is known yet"])
    assert_told(inside(folder, *ASKED, "--out", "t.csv"), 2, ["no feature service named 'basket'; none is known yet"])
    assert inside(folder, "verify").ok().out.endswith("0 entities equal, no difference\n")
