"""Sequence order: the order of a batch's rows that does not depend on how its files were written.

Rows of a batch are numbered by (join keys, event_timestamp, created_timestamp, canonical value bytes), rule 6 of
time. Twins, rows with the same keys and times, are dropped when their bytes are equal too, else counted ambiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.compiler.names import CREATED, EVENT
from featurestore.feature_view import FeatureView
from featurestore.online.row_encoder import RowEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequenced:
    """A batch in sequence order without its repeated rows; `offsets` are sequence numbers relative to the block."""

    rows: pa.Table
    offsets: NDArray[np.int64]
    repeated: int
    ambiguous: int


def in_sequence(view: FeatureView, rows: pa.Table) -> Sequenced:
    """The rows of one batch in sequence order."""
    identity = (*view.join_keys, EVENT, CREATED)
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in identity])
    ordered = rows.take(order)
    twin = _equals_previous(ordered, identity)
    if not twin.any():
        return Sequenced(rows=ordered, offsets=np.arange(rows.num_rows), repeated=0, ambiguous=0)
    return _settled(view, ordered, twin)


def differing_twins(view: FeatureView, rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows, none with a null key or time, share keys and times with a row of other values."""
    identity = (*view.join_keys, EVENT, CREATED)
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in identity])
    ordered = rows.take(order)
    twin = _equals_previous(ordered, identity)
    differing = np.zeros(rows.num_rows, dtype=bool)
    if twin.any():
        tied = _tied(view, ordered, twin)
        groups = tied.group[tied.same_group & ~tied.same_bytes]
        differing[order.to_numpy()[tied.places[np.isin(tied.group, groups)]]] = True
    return differing


@dataclass(frozen=True, slots=True)
class _Tied:
    """The rows that share keys and times with others, by group and then by value bytes; each against the one before."""

    places: NDArray[np.int64]
    group: NDArray[np.int64]
    same_group: NDArray[np.bool_]
    same_bytes: NDArray[np.bool_]


def _tied(view: FeatureView, ordered: pa.Table, twin: NDArray[np.bool_]) -> _Tied:
    group = np.cumsum(~twin, dtype=np.int64)
    places = np.flatnonzero(twin | np.append(twin[1:], False))
    payload = RowEncoder(0, view.schema).payload(
        [ordered.column(field.name).combine_chunks().take(pa.array(places)) for field in view.schema]
    )
    keys = pa.table({"group": group[places], "payload": payload})
    within = pc.sort_indices(keys, sort_keys=[("group", "ascending"), ("payload", "ascending")]).to_numpy()
    sorted_payload = keys.column("payload").combine_chunks().take(pa.array(within))
    same_bytes = np.zeros(len(places), dtype=bool)
    same_bytes[1:] = pc.equal(sorted_payload[1:], sorted_payload[:-1]).to_numpy(zero_copy_only=False)
    same_group = np.zeros(len(places), dtype=bool)
    same_group[1:] = group[places][1:] == group[places][:-1]
    return _Tied(places[within], group[places], same_group, same_bytes)


def _settled(view: FeatureView, ordered: pa.Table, twin: NDArray[np.bool_]) -> Sequenced:
    """Order twins by their value bytes and drop the repeated ones."""
    tied = _tied(view, ordered, twin)
    places = np.sort(tied.places)
    order = np.arange(ordered.num_rows)
    order[places] = tied.places
    repeated = np.zeros(ordered.num_rows, dtype=bool)
    repeated[places] = tied.same_bytes & tied.same_group
    kept = np.flatnonzero(~repeated)
    return Sequenced(
        rows=ordered.take(pa.array(order[kept])),
        offsets=kept,
        repeated=int(np.count_nonzero(repeated)),
        ambiguous=int(np.count_nonzero(tied.same_group & ~tied.same_bytes)),
    )


def _equals_previous(ordered: pa.Table, identity: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which rows have the same identity as the row before them."""
    equal = np.zeros(ordered.num_rows, dtype=bool)
    if ordered.num_rows < 2:
        return equal
    equal[1:] = True
    for name in identity:
        column = ordered.column(name).combine_chunks()
        equal[1:] &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return equal
