"""What the inbox knows: every row that waits, the last ones that became history, and what old files hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featurestore.ingest import inbox as module
from featurestore.ingest.inbox import Inbox, InboxBatch
from featurestore.online.sqlite import SqliteOnlineStore
from tests.fix_repository import NOON, rows_table

REF = "weather@1"
OLD = """
CREATE TABLE inbox_known (
    view TEXT NOT NULL, place BLOB NOT NULL, said BLOB NOT NULL, PRIMARY KEY (view, place, said)
) WITHOUT ROWID
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteOnlineStore]:
    store = SqliteOnlineStore(tmp_path / "inbox.db", "test")
    yield store
    store.close()


def digests(*numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    return np.array([[number, number] for number in numbers], dtype=np.uint64)


def push(inbox: Inbox, first: int, *numbers: int) -> InboxBatch:
    table = rows_table([("A", NOON, 1.0, 1)])
    with inbox.transaction() as inside:
        inside.remember(REF, digests(*numbers), digests(*numbers))
        inside.put(REF, first, table, None)
    return InboxBatch(first=first, rows=table, refused=None)


def known(inbox: Inbox, *numbers: int) -> list[bool]:
    with inbox.transaction() as inside:
        same, _ = inside.known(REF, digests(*numbers), digests(*numbers))
    return same.tolist()


def test_the_oldest_rows_are_forgotten_once_nothing_waits(
    store: SqliteOnlineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_MAX", 3)
    inbox = Inbox(store, "test")
    first, second = push(inbox, 1, 1, 2, 3), push(inbox, 4, 4, 5)

    inbox.remove(REF, [first])
    assert known(inbox, 1, 2, 3, 4, 5) == [True] * 5, "a row that waits must be known"
    inbox.remove(REF, [second])

    assert known(inbox, 1, 2, 3, 4, 5) == [False, False, True, True, True]


def test_a_file_of_the_first_release_is_taken_over(store: SqliteOnlineStore, tmp_path: Path) -> None:
    old = digests(9)
    with sqlite3.connect(tmp_path / "inbox.db") as connection:
        connection.execute(OLD)
        connection.execute("INSERT INTO inbox_known VALUES (?, ?, ?)", [f"test/{REF}", old.tobytes(), old.tobytes()])
    connection.close()

    inbox = Inbox(store, "test")
    push(inbox, 1, 1)

    assert known(inbox, 9, 1, 2) == [True, True, False]
