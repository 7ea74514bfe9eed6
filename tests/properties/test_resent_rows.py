"""Rule 6 of time against the double loop: duplicates, corrections and ambiguous twins, in any order of arrival."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.compiler.latest_rows import LatestRows
from featurestore.compiler.names import SEQUENCE
from featurestore.feature_view import FeatureView
from featurestore.ingest.gate import Gate
from featurestore.ingest.load import LoadCounts, Loader, WindowedBatch
from featurestore.ingest.source_batch import RowWindow, SourceBatch
from featurestore.offline.duckdb import DuckDBOfflineStore
from tests.fix_histories import History, arrive_all, histories
from tests.fix_offline import PROJECT, history_table, opened_store, payload
from tests.fix_properties import thoroughly
from tests.oracle import Row, arrive, projection

ALWAYS_US = 253_402_300_799_999_999


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBOfflineStore]:
    with opened_store(tmp_path_factory.mktemp("resent")) as opened:
        yield opened


@dataclass
class Sequences:
    """Blocks of sequence numbers; every batch takes one."""

    next: int = 1
    blocks: list[int] = field(default_factory=list)

    def take(self, count: int) -> int:
        self.blocks.append(self.next)
        self.next += count
        return self.blocks[-1]


@st.composite
def streams(draw: st.DrawFn) -> tuple[FeatureView, list[list[Row]]]:
    """Batches of source rows: rows of a small history, some sent again, in one batch or later, in any order."""
    history = draw(histories(rows_max=8))
    rows = [row for batch in history.batches for row in batch]
    if not rows:
        return history.view, [[]]
    batches = draw(st.lists(st.lists(st.sampled_from(rows), max_size=8), min_size=1, max_size=3))
    return history.view, batches


@thoroughly
@given(stream=streams())
def test_a_stream_of_batches_becomes_what_the_double_loop_says(
    store: DuckDBOfflineStore, stream: tuple[FeatureView, list[list[Row]]]
) -> None:
    view, batches = stream
    arrive_all(store, History(view=view, base=0, batches=()))
    sequences, rows = Sequences(), list[Row]()
    loader = Loader(
        view=view, schema_id=1, store=store, take_sequences=sequences.take, gate=Gate(view, run="run", at_us=0)
    )

    for batch in batches:
        first = sequences.next
        rows, expected = arrive(rows, batch, first, lambda value: payload(view, value))
        counts = loader.settle(_source_batch(view, batch)).counts

        assert counts == LoadCounts(
            read=len(batch),
            added=expected.added,
            corrections=expected.corrections,
            duplicates=expected.duplicates,
            ambiguous=expected.ambiguous,
        )
        assert store.position(view.ref) == store.history_rows(view.ref) == len(rows)

    assert _winners(store, view) == Counter(row.sequence for row in projection(rows, len(rows), ALWAYS_US).values())


def _source_batch(view: FeatureView, rows: list[Row]) -> WindowedBatch:
    table = history_table(view, rows).drop_columns([SEQUENCE])
    names = {"event_timestamp": "at", "created_timestamp": "known_at"}
    renamed = table.rename_columns([names.get(name, name) for name in table.column_names])
    return WindowedBatch(
        batch=SourceBatch(rows=renamed, source="rows", row_numbers=np.arange(len(rows))), window=RowWindow()
    )


def _winners(store: DuckDBOfflineStore, view: FeatureView) -> Counter[int]:
    query = LatestRows(project=PROJECT, view=view, position_to=store.position(view.ref), horizon_to_us=ALWAYS_US)
    with store.latest(query, 1000) as reader:
        table: pa.Table = reader.read_all()
    return Counter(table.column(SEQUENCE).to_pylist())
