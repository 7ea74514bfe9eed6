"""Looks at single online rows: can they be read, does history hold them, how do they stand to the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.errors import StoreError
from featurestore.feature_view import FeatureView
from featurestore.field import Field
from featurestore.ingest.inbox import Inbox
from featurestore.ingest.projection import pack
from featurestore.offline.base import OfflineStore
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_decoder import DecodedRows, RowDecoder
from featurestore.online.row_encoder import RowEncoder
from featurestore.online.row_layout import CODEC_VERSION, PREFIX_BYTES, SCHEMA_ID_AT, VERSION_AT
from featurestore.parity.report import CODEC, DEFINITION

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class OnlineRows:
    """Rows as they were read, aligned with their keys. What is below `readable` is aligned with the readable ones."""

    keys: pa.BinaryArray
    present: Mask
    readable: Mask
    #: Why a row that is there cannot be read.
    faults: NDArray[np.object_]
    decoded: DecodedRows
    #: The readable rows in today's schema.
    rewritten: pa.BinaryArray

    def order_at(self, row: int) -> tuple[int, int, int] | None:
        """(event, created, sequence) of a row, None when there is none that can be read."""
        if not self.readable[row]:
            return None
        place = int(np.count_nonzero(self.readable[:row]))
        order = self.decoded.order
        return int(order.event_us[place]), int(order.created_us[place]), int(order.sequence[place])


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads online rows of one view; `schemas` are the field lists of every schema id its rows may carry."""

    view: FeatureView
    schema_id: int
    schemas: Mapping[int, Sequence[Field]]
    offline: OfflineStore
    inbox: Inbox | None = None

    @property
    def encoder(self) -> RowEncoder:
        """Packs rows of today's schema."""
        return RowEncoder(self.schema_id, self.view.schema)

    def read(self, keys: pa.BinaryArray, stored: pa.BinaryArray) -> OnlineRows:
        """Look at stored rows; one that cannot be read is a finding, no reason to stop."""
        decoder = RowDecoder(self.schemas, self.view.schema)
        present = stored.is_valid().to_numpy(zero_copy_only=False)
        readable = present.copy()
        _mark_unreadable(decoder, stored, readable)
        faults = np.full(len(keys), "", dtype=object)
        for row in np.flatnonzero(present & ~readable):
            faults[row] = self._fault(stored[int(row)].as_py())
        decoded = decoder.decode(stored.filter(pa.array(readable)))
        rewritten = self.encoder.encode(decoded.order, list(decoded.columns))
        return OnlineRows(keys, present, readable, faults, decoded, rewritten)

    def held(self, rows: OnlineRows, now_us: int | None) -> Mask:
        """Which readable rows history or the inbox holds, bit for bit, and visible by `now_us`."""
        order = rows.decoded.order
        held = np.ones(len(order), dtype=bool)
        if now_us is not None:
            held = np.maximum(order.event_us, order.created_us) <= now_us
        if not held.any():
            return held
        sequences = pa.array(np.unique(order.sequence))
        # The inbox first: a row that is drained between the two is then met in history.
        waiting = None if self.inbox is None else self.inbox.rows_of(self.view, sequences)
        known: set[tuple[bytes, bytes]] = set()
        for found in (waiting, self.offline.rows_of(self.view, sequences)):
            if found is not None:
                known_keys, known_rows = pack(self.view, self.encoder, found)
                known.update(zip(known_keys.to_pylist(), known_rows.to_pylist(), strict=True))
        keys = rows.keys.filter(pa.array(rows.readable)).to_pylist()
        pairs = zip(keys, rows.rewritten.to_pylist(), strict=True)
        return held & np.array([pair in known for pair in pairs], dtype=bool)

    def _fault(self, row: bytes) -> str:
        if len(row) < PREFIX_BYTES or row[VERSION_AT] != CODEC_VERSION:
            return CODEC
        return CODEC if int.from_bytes(row[SCHEMA_ID_AT:PREFIX_BYTES], "little") in self.schemas else DEFINITION


def order_sides(left: OrderKeys, right: OrderKeys) -> NDArray[np.int8]:
    """-1, 0 or 1 per row as the left order key is less, equal or greater."""
    sides = np.zeros(len(left), dtype=np.int8)
    columns = ((left.event_us, right.event_us), (left.created_us, right.created_us), (left.sequence, right.sequence))
    for ours, theirs in columns:
        sides = np.where(sides != 0, sides, np.sign(ours - theirs).astype(np.int8))
    return sides


def same_bytes(left: pa.BinaryArray, right: pa.BinaryArray) -> Mask:
    """Whether rows are equal; False where either is null."""
    same: Mask = pc.equal(left, right).fill_null(False).to_numpy(zero_copy_only=False)
    return same


def _mark_unreadable(decoder: RowDecoder, rows: pa.BinaryArray, readable: Mask) -> None:
    """Clear `readable` where a row cannot be decoded; such rows are few, so they are found by halving."""
    try:
        decoder.decode(rows)
    except StoreError:
        if len(rows) == 1:
            readable[:] = False
            return
        middle = len(rows) // 2
        _mark_unreadable(decoder, rows.slice(0, middle), readable[:middle])
        _mark_unreadable(decoder, rows.slice(middle), readable[middle:])
