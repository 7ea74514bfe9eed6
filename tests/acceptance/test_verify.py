"""`verify` as a user runs it: what is changed behind its back is named with its kind and key, and repair heals it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from featurestore import Int64
from featurestore.online.keys import bucket_of, encode_keys
from featurestore.online.row_layout import PREFIX_BYTES
from tests.acceptance.shop import LARGE, NOW
from tests.fix_cli import Contents, Run


def online_key(customer_id: int) -> bytes:
    """A customer's key."""
    return encode_keys([pa.array([customer_id])], [Int64])[0].as_py()


def stored_key(customer_id: int) -> bytes:
    """The same as the online file has it: a bucket stands before it."""
    key = online_key(customer_id)
    return int(bucket_of(pa.array([key], pa.binary()))[0]).to_bytes(2, "big") + key


#: Where the first value of a customer's row begins: after its prefix and the null bitmap.
FIRST_CELL = PREFIX_BYTES + 1


def tamper(folder: Path) -> None:
    """Lose a row, change one, set one back in time, and add one that history never had."""
    with closing(sqlite3.connect(folder / "data" / "online.db")) as connection, connection:
        rows = connection.execute("SELECT view, key, row FROM online_row").fetchall()

        def customer(customer_id: int) -> tuple[int, bytes, bytes]:
            (found,) = [row for row in rows if row[1] == stored_key(customer_id)]
            return found

        def store(view: int, key: bytes, row: bytes) -> None:
            connection.execute("INSERT OR REPLACE INTO online_row VALUES (?, ?, ?)", (view, key, row))

        view, key, row = customer(1)
        connection.execute("DELETE FROM online_row WHERE view = ? AND key = ?", (view, key))
        store(view, stored_key(4711), row)
        view, key, row = customer(2)
        store(view, key, row[:FIRST_CELL] + bytes([row[FIRST_CELL] ^ 1]) + row[FIRST_CELL + 1 :])
        view, key, row = customer(LARGE)
        earlier = (int.from_bytes(row[:8], "big") - 1).to_bytes(8, "big")
        store(view, key, earlier + row[8:])


def test_verify_names_what_was_changed_behind_its_back_and_repair_heals_it(inside: Run, store: Path) -> None:
    sound = Contents.of(store).online["online_row"]
    assert inside(store, "verify", "--now", NOW).code == 0
    tamper(store)

    said = inside(store, "verify", "--now", NOW)
    told = inside(store, "verify", "--json", "--now", NOW)

    assert said.code == told.code == 1
    spending = told.json["views"][0]
    assert spending["causes"] == {
        "missing": {"lost by the store": 1},
        "stale": {"foreign write": 1},
        "different": {"foreign write": 1},
        "extra": {"foreign write": 1},
    }
    assert [spending[kind] for kind in ("missing", "stale", "different", "extra", "evicted_early")] == [1, 1, 1, 1, 0]
    assert {example["kind"]: example["key"] for example in spending["examples"]} == {
        "missing": {"customer_id": 1},
        "stale": {"customer_id": LARGE},
        "different": {"customer_id": 2},
        "extra": {"customer_id": 4711},
    }
    assert told.json["equal"] is False
    assert "spending@1 missing: customer_id=1: history has a row for this entity, the online store has none" in said.out
    assert "4 differ" in said.out
    repaired = inside(store, "materialize-incremental", "--repair", "--json", "--now", NOW).ok()
    assert repaired.json["views"]["spending@1"]["published"]["rows_written"] == 4
    assert inside(store, "verify", "--now", NOW).code == 0
    assert Contents.of(store).online["online_row"] == sound


def test_a_row_that_cannot_be_read_is_a_difference_like_others(inside: Run, store: Path) -> None:
    """It neither hides the other differences nor ends the command."""
    with closing(sqlite3.connect(store / "data" / "online.db")) as connection, connection:
        connection.execute("UPDATE online_row SET row = substr(row, 1, 26) WHERE key = ?", (stored_key(2),))
        copied = "INSERT INTO online_row SELECT view, ?, x'00' FROM online_row WHERE key = ?"
        connection.execute(copied, (stored_key(4711), stored_key(1)))
        connection.execute("DELETE FROM online_row WHERE key = ?", (stored_key(1),))
    told = inside(store, "verify", "--json", "--now", NOW)
    spending = told.json["views"][0]
    assert (told.code, spending["missing"], spending["different"], spending["extra"]) == (1, 1, 1, 1)
    inside(store, "materialize-incremental", "--repair", "--now", NOW).ok()
    assert inside(store, "verify", "--now", NOW).code == 0


def test_verify_of_a_service_looks_at_its_views_alone(inside: Run, store: Path) -> None:
    verified = inside(store, "verify", "--service", "loyalty", "--json", "--now", NOW).ok().json
    assert [view["view"] for view in verified["views"]] == ["spending@1"]
