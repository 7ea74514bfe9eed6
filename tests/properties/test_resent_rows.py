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
from featurestore.offline.base import OfflineStore
from tests.fix_histories import History, arrive_all, views
from tests.fix_offline import ENGINES, KEYS, PROJECT, VALUES, history_table, opened_engine, payload, values_of
from tests.fix_properties import by_database
from tests.oracle import Row, arrive, projection

ALWAYS_US = 253_402_300_799_999_999


@pytest.fixture(scope="module", params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OfflineStore]:
    with opened_engine(request, request.param, tmp_path_factory.mktemp("resent")) as opened:
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
    """Batches of source rows for a few places in history, with values that differ in little, in any order."""
    view = draw(views())
    pool = next(keys for types, keys in KEYS.values() if types == view.join_keys)
    places = st.tuples(st.sampled_from(pool), st.integers(0, 1), st.integers(0, 1))
    several = draw(st.lists(places, min_size=1, max_size=3, unique=True))
    values = st.sampled_from(VALUES).map(lambda row: values_of(view, row))
    row = st.builds(
        lambda place, value: Row(
            keys=place[0], event=place[1], created=place[2] if view.has_created else place[1], value=value
        ),
        st.sampled_from(several),
        values,
    )
    sizes = draw(st.sampled_from([[0], [1, 1], [8], [6, 6], [1, 8, 4]]))
    return view, [draw(st.lists(row, min_size=size, max_size=size)) for size in sizes]


@by_database
@given(stream=streams())
def test_a_stream_of_batches_becomes_what_the_double_loop_says(
    store: OfflineStore, stream: tuple[FeatureView, list[list[Row]]]
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


def _winners(store: OfflineStore, view: FeatureView) -> Counter[int]:
    query = LatestRows(project=PROJECT, view=view, position_to=store.position(view.ref), horizon_to_us=ALWAYS_US)
    with store.latest(query, 1000) as reader:
        table: pa.Table = reader.read_all()
    return Counter(table.column(SEQUENCE).to_pylist())
