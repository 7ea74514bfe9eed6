"""The quarantine table on each engine: what is kept, what leaves, within which bounds, and how an old table grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pyarrow as pa
import pytest

from featurestore import Int64
from featurestore.clock import from_us
from featurestore.errors import InputError, StoreBusy, TooManyBreaches
from featurestore.ingest.quarantined_rows import SourceRows
from featurestore.ingest.raw_rows import form_of, raw_texts
from featurestore.offline.base import ArrivedRows, OfflineStore
from featurestore.offline.duckdb import DuckDBOfflineStore
from featurestore.offline.postgres import PostgresOfflineStore
from featurestore.offline.quarantine import QUARANTINE_SCHEMA, Chosen, pages
from tests.fix_offline import ENGINES, PROJECT, append, history_table, make_view
from tests.fix_postgres import drop_schema
from tests.oracle import Row

VIEW = make_view("text", {"delay": Int64})
ROWS_MAX = 4


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OfflineStore]:
    """A store of each engine that keeps a few quarantined rows a view, with a history."""
    if request.param == "duckdb":
        made: OfflineStore = DuckDBOfflineStore(tmp_path / "a.duckdb", PROJECT, quarantine_rows_max=ROWS_MAX)
    else:
        url = request.getfixturevalue("postgres_shared")
        drop_schema(url, PROJECT)
        made = PostgresOfflineStore(url, PROJECT, quarantine_rows_max=ROWS_MAX)
    made.ensure_history(VIEW)
    yield made
    made.close()


def refused(*numbers: int, rule: str = "ge", run: str = "run") -> pa.Table:
    """Rows that were set aside, in the order of their arrival."""
    common = {"view": VIEW.ref, "definition": "d", "field": "delay", "reason": f"breaks {rule}", "source": "a.csv"}
    rows = [
        common
        | {"id": f"id{number}", "sequence": number, "run": run, "rule": rule, "source_row": number}
        | {"raw": f'{{"delay": {number}}}', "raw_form": "form", "quarantined_at": from_us(number)}
        for number in numbers
    ]
    return pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)


def leg(sequence: int) -> Row:
    return Row(keys=(f"k{sequence}",), event=1, created=1, sequence=sequence, value=(sequence,))


def said(number: int, rows: pa.Table) -> pa.Table:
    """A row that was set aside, of which the source said this."""
    kept = refused(number)
    for name, text in (("raw", raw_texts(rows)[0]), ("raw_form", form_of(rows, text=False))):
        kept = kept.set_column(kept.column_names.index(name), name, pa.array([text]))
    return kept


def ids(store: OfflineStore, **chosen: str) -> list[str]:
    return list(store.quarantine.rows(Chosen(**chosen)).column("id").to_pylist())


def test_rows_come_in_the_order_of_their_arrival_page_by_page(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=refused(3, 1))
    append(store, VIEW, [], refused=refused(2, rule="le", run="other"))

    kept = store.quarantine.rows(Chosen(view=VIEW.ref))
    assert kept.equals(pa.concat_tables([refused(1), refused(2, rule="le", run="other"), refused(3)]).combine_chunks())
    assert pa.concat_tables(pages(store.quarantine, Chosen(view=VIEW.ref), 2)).combine_chunks().equals(kept)
    page = store.quarantine.rows(Chosen(view=VIEW.ref), limit=1, after=(1, "id1"))
    assert page.column("id").to_pylist() == ["id2"]
    assert store.quarantine.totals() == {VIEW.ref: 3}
    assert ids(store, rule="le") == ids(store, run="other") == ids(store, id="id2") == ["id2"]
    assert ids(store, view="other@1") == []


def test_rows_are_counted_by_view_rule_field_and_run(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=refused(1, 2))
    append(store, VIEW, [], refused=refused(3, rule="le"))

    counts = store.quarantine.counts(Chosen())

    assert counts.select(["view", "rule", "field", "run", "rows"]).to_pylist() == [
        {"view": VIEW.ref, "rule": "ge", "field": "delay", "run": "run", "rows": 2},
        {"view": VIEW.ref, "rule": "le", "field": "delay", "run": "run", "rows": 1},
    ]
    assert counts.column("last_at").cast(pa.int64()).to_pylist() == [2, 3]


def test_a_row_leaves_by_the_commit_that_makes_it_history_or_not_at_all(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=refused(1, 2))

    def lost() -> None:
        raise RuntimeError("the lease is gone")

    with pytest.raises(RuntimeError, match="lease"):
        append(store, VIEW, [leg(1)], released=pa.array(["id1"]), confirm=lost)
    assert (ids(store), store.history_rows(VIEW.ref)) == (["id1", "id2"], 0)

    append(store, VIEW, [leg(1)], released=pa.array(["id1"]), refused=refused(2, rule="le"))
    assert (ids(store), store.history_rows(VIEW.ref)) == (["id2"], 1)
    assert store.quarantine.rows(Chosen(id="id2")).column("reason").to_pylist() == ["breaks le"]


def test_a_load_that_would_fill_quarantine_is_refused_whole_at_the_bound(store: OfflineStore) -> None:
    append(store, VIEW, [leg(1)], refused=refused(1, 2, 3))
    store.quarantine.require_room(VIEW.ref)

    with pytest.raises(TooManyBreaches, match="would hold 5 of its rows, quarantine.max_rows allows 4"):
        append(store, VIEW, [leg(2)], refused=refused(3, 4, 5))
    assert (ids(store), store.history_rows(VIEW.ref)) == (["id1", "id2", "id3"], 1)

    append(store, VIEW, [leg(2)], refused=refused(3, 4))
    with pytest.raises(TooManyBreaches, match="quarantine list --view leg@1"):
        store.quarantine.require_room(VIEW.ref)


def test_pushed_rows_become_history_where_quarantine_is_full(store: OfflineStore) -> None:
    append(store, VIEW, [leg(1)], refused=refused(1, 2, 3, 4, 5, 6), answered=True)
    assert (ids(store), store.history_rows(VIEW.ref)) == (["id1", "id2", "id3", "id4"], 1)


def test_dropped_rows_are_gone_and_no_others(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=refused(1, 2))
    append(store, VIEW, [], refused=refused(3, rule="le"))
    assert store.quarantine.drop(Chosen(view=VIEW.ref, rule="ge")) == 2
    assert store.quarantine.drop(Chosen(view="other@1")) == 0
    assert ids(store) == ["id3"]


def test_what_a_load_broke_so_far_is_kept_with_its_rows(store: OfflineStore) -> None:
    arrived = {"load_id": "load", "rows_done": 10, "checked": 8, "broken": 3}
    append(store, VIEW, [leg(1)], **arrived)
    assert store.breached("load") == (8, 3)
    assert store.breached("unknown") == (0, 0)


OLD = (
    "DROP TABLE flights._quarantine",
    "ALTER TABLE flights._loads DROP COLUMN checked",
    "ALTER TABLE flights._loads DROP COLUMN broken",
    "CREATE TABLE flights._quarantine (view text NOT NULL, run text NOT NULL, rule text NOT NULL, field text NOT NULL,"
    " reason text NOT NULL, source text NOT NULL, source_row bigint NOT NULL, raw text NOT NULL,"
    " quarantined_at timestamptz NOT NULL)",
    "INSERT INTO flights._quarantine VALUES"
    " ('leg@1', 'old', 'ge', 'delay', 'why', 'a.csv', 0, '{1}', '2024-01-01 00:00:00+00'),"
    " ('leg@1', 'old', 'le', 'delay', 'why', 'a.csv', 0, '{1}', '2024-01-01 00:00:00+00')",
)


@pytest.mark.parametrize("first", ["look", "append"])
def test_the_table_of_an_earlier_release_grows_and_keeps_its_rows(
    first: str, store: OfflineStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if isinstance(store, DuckDBOfflineStore):
        with duckdb.connect(str(tmp_path / "a.duckdb")) as file:
            for statement in OLD:
                file.execute(statement)
        again: OfflineStore = DuckDBOfflineStore(tmp_path / "a.duckdb", PROJECT)
    else:
        url = request.getfixturevalue("postgres_shared")
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in OLD:
                connection.execute(statement)
        again = PostgresOfflineStore(url, PROJECT)

    if first == "append":
        again.append(
            VIEW,
            ArrivedRows(
                rows=history_table(VIEW, []), schema_id=1, refused=refused(1), load_id="x", broken=1, checked=1
            ),
        )
        assert again.breached("x") == (1, 1)
    kept = again.quarantine.rows(Chosen(run="old"))

    assert kept.schema == QUARANTINE_SCHEMA
    assert kept.select(["rule", "raw", "raw_form", "sequence"]).sort_by("rule").to_pylist() == [
        {"rule": rule, "raw": "{1}", "raw_form": "", "sequence": 0} for rule in ("ge", "le")
    ]
    assert len(set(kept.column("id").to_pylist())) == 2
    assert again.quarantine.drop(Chosen(run="old")) == 2
    again.close()


# ------------------------------------------------------------------ as the source had them


@pytest.mark.parametrize("rows_max", [1, 3, 100])
def test_rows_of_several_forms_are_read_page_by_page_in_the_columns_of_all(store: OfflineStore, rows_max: int) -> None:
    whole, text = pa.table({"delay": [1], "tail": ["N1"]}), pa.table({"delay": ["late"], "seen": [0.5]})
    unknown = refused(4).set_column(QUARANTINE_SCHEMA.names.index("raw_form"), "raw_form", pa.array([""]))
    append(store, VIEW, [], refused=pa.concat_tables([said(1, whole), said(2, text), said(3, whole), unknown]))

    rows = SourceRows(store.quarantine, Chosen(view=VIEW.ref))
    tables = list(rows.tables(rows_max))

    assert all(table.schema == rows.schema and table.num_rows <= rows_max for table in tables)
    found = pa.concat_tables(tables)
    assert found.column("quarantine_id").to_pylist() == ["id1", "id2", "id3", "id4"]
    assert found.select(["delay", "tail", "seen"]).to_pydict() == {
        "delay": ["1", '"late"', "1", None], "tail": ["N1", None, "N1", None], "seen": [None, 0.5, None, None],
    }  # fmt: skip
    assert found.column_names[-3:] == ["delay", "tail", "seen"]


def test_no_rows_are_an_empty_table_of_what_quarantine_says(store: OfflineStore) -> None:
    rows = SourceRows(store.quarantine, Chosen(view=VIEW.ref))
    assert (list(rows.tables()), rows.schema.names[0], len(rows.schema)) == ([], "quarantine_view", 11)


def test_rows_of_another_form_that_come_in_meanwhile_are_told(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=said(1, pa.table({"delay": [1]})))
    tables = SourceRows(store.quarantine, Chosen(view=VIEW.ref)).tables(1)
    next(tables)
    append(store, VIEW, [], refused=said(2, pa.table({"other": [1]})))
    with pytest.raises(StoreBusy, match="run this again"):
        next(tables)


def test_a_column_named_as_one_of_quarantine_is_refused(store: OfflineStore) -> None:
    append(store, VIEW, [], refused=said(1, pa.table({"quarantine_rule": [1]})))
    with pytest.raises(InputError, match="columns named quarantine_rule.*rename them"):
        SourceRows(store.quarantine, Chosen(view=VIEW.ref))
