"""Hypothesis strategies for histories and spines: few entities, few instants, so that ties and edges are the rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from featurestore.clock import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US
from featurestore.feature_view import FeatureView
from featurestore.offline.base import OfflineStore
from tests.fix_offline import ALL_TYPES, KEYS, VALUES, append, bits, make_view, values_of
from tests.oracle import Keys, Row

#: Instants are drawn in [base, base + SPAN_US], a microsecond apart, so that a ttl's edge is hit and missed by one.
SPAN_US = 5
BASES_US = (0, -4, 1_385_856_000_000_000, TIMESTAMP_MIN_US, TIMESTAMP_MAX_US - SPAN_US)


@dataclass(frozen=True, kw_only=True)
class History:
    """A view and the batches that arrived, in the order of their commits, with the sequences they were given."""

    view: FeatureView
    base: int
    batches: tuple[tuple[Row, ...], ...]

    def __repr__(self) -> str:
        keys = ", ".join(f"{name}: {dtype}" for name, dtype in self.view.join_keys.items())
        kind = f"{keys}; created={self.view.has_created}, ttl={self.view.ttl}"
        return "\n".join(
            [f"History({kind}", *(f"  {row}" for batch in self.batches for row in ("-- batch", *batch)), ")"]
        )

    @property
    def committed(self) -> list[Row]:
        """Rows with the positions that commits give, without those that history already held (rule 6)."""
        rows: list[Row] = []
        for batch in self.batches:
            known = {(row.keys, row.event, row.created, str(bits(row.value))) for row in rows}
            fresh = [row for row in batch if (row.keys, row.event, row.created, str(bits(row.value))) not in known]
            rows += [replace(row, position=len(rows) + place) for place, row in enumerate(fresh, start=1)]
        return rows


def arrive_all(store: OfflineStore, history: History) -> None:
    """The history, and nothing else, in the store."""
    store.drop_history(history.view.ref)
    store.ensure_history(history.view)
    for batch in history.batches:
        append(store, history.view, batch)


def instants(base: int) -> st.SearchStrategy[int]:
    """An instant near `base`, each as likely as the others."""
    return st.sampled_from(range(base, base + SPAN_US + 1))


@st.composite
def views(draw: st.DrawFn) -> FeatureView:
    """A view of any kind of key, with or without created timestamps, with or without ttl."""
    few = {name: ALL_TYPES[name] for name in ("a_float64", "a_string", "a_vector")}
    return make_view(
        draw(st.sampled_from(sorted(KEYS))),
        draw(st.sampled_from([*[few] * 7, ALL_TYPES])),
        created=draw(st.sampled_from([True, True, False])),
        ttl_us=draw(st.sampled_from([None, None, 1, 2, 4])),
    )


@st.composite
def histories(draw: st.DrawFn, rows_max: int = 24) -> History:
    """A history of up to three entities: sequences in any order, late batches, rows known before they were true."""
    view, base = draw(views()), draw(st.sampled_from(BASES_US))
    pool = next(keys for types, keys in KEYS.values() if types == view.join_keys)
    keys = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=2, unique=True))
    values = st.sampled_from(VALUES).map(lambda row: values_of(view, row))
    # Empty histories belong here, but a history without ties says little: most have many rows of few entities.
    count = draw(st.sampled_from([0, 1, rows_max // 2, *[rows_max] * 5]))
    row = st.tuples(st.sampled_from(keys), instants(base), instants(base), values)
    drawn = draw(st.lists(row, min_size=count, max_size=count))
    sequences = draw(st.permutations(range(1, len(drawn) + 1)))
    rows = [
        Row(keys=key, event=event, created=created if view.has_created else event, sequence=sequence, value=value)
        for (key, event, created, value), sequence in zip(drawn, sequences, strict=True)
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    edges = [0, *cuts, len(rows)]
    return History(
        view=view,
        base=base,
        batches=tuple(_distinct(rows[low:high]) for low, high in zip(edges, edges[1:], strict=False)),
    )


def asked_keys(history: History) -> st.SearchStrategy[Keys]:
    """Join keys a spine may hold: known ones more often than not, unknown ones, some that are null in part or whole."""
    pool = next(keys for types, keys in KEYS.values() if types == history.view.join_keys)
    known = sorted({row.keys for row in history.committed}, key=str) or list(pool)
    broken = st.sampled_from(pool).flatmap(
        lambda key: st.integers(0, len(key) - 1).map(lambda place: (*key[:place], None, *key[place + 1 :]))
    )
    sure = [st.sampled_from(known)] * 4
    return st.one_of(*sure, st.sampled_from(pool), broken)


def _distinct(batch: list[Row]) -> tuple[Row, ...]:
    """A batch as it reaches the store: no two rows alike in keys, times and bits."""
    seen = {(row.keys, row.event, row.created, str(bits(row.value))): row for row in reversed(batch)}
    return tuple(reversed(list(seen.values())))
