"""Rows into a near cache before a worker takes requests, by the policies of the settings, in their order.

Tokens are read before rows, as always. What is loaded is confirmed once more before the first request: loading may take
longer than a token is good for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.offline.sources import read_table
from featurestore.online import packing
from featurestore.online.base import OnlineStore
from featurestore.online.keys import BUCKETS, bucket_of, encode_keys
from featurestore.online.order_keys import OrderKeys
from featurestore.online.row_layout import ORDER_KEY_BYTES
from serving.near_cache import NearCache

log = logging.getLogger(__name__)

Policy = Literal["hot", "recent", "file", "all"]
#: Rows read from the store at a time.
BATCH_ROWS = 10_000
#: How often progress is told.
TELL_S = 2.0

_EVERY = np.arange(BUCKETS, dtype=np.uint16)


class PreloadLate(Exception):
    """The time for preloading is over; what was loaded is there."""


@dataclass(kw_only=True)
class Preload:
    """Fills `cache` from `store` for some views. `hot` are keys by view, `keys_file` has columns of join keys.

    `late` says that time is over. Blocking: meant for a thread, while nobody else uses the cache.
    """

    cache: NearCache
    store: OnlineStore
    views: Mapping[str, FeatureView]
    policies: Sequence[Policy]
    hot: Mapping[str, pa.BinaryArray]
    keys_file: Path | None = None
    late: Callable[[], bool] = lambda: False

    def run(self) -> int:
        """How many rows were loaded; PreloadLate when there was no time for more, and what the store raises."""
        self._began = self._told = time.monotonic()
        self._rows = 0
        #: By view: True at the buckets of which something was loaded.
        self._buckets = {ref: np.zeros(BUCKETS, dtype=np.bool_) for ref in self.views}
        ways = {"hot": self._load_hot, "recent": self._load_recent, "file": self._load_file, "all": self._load_all}
        for policy in self.policies:
            before = self._rows
            ways[policy]()
            self._tell(f"{policy!r} is done with {self._rows - before:,} rows", at_once=True)
        for ref, buckets in self._buckets.items():
            self.cache.use(ref, buckets)
        return self._rows

    def _load_hot(self) -> None:
        for ref in self.views:
            if ref in self.hot:
                self._load_keys(ref, self.hot[ref])

    def _load_file(self) -> None:
        assert self.keys_file is not None
        types = {name: dtype for view in self.views.values() for name, dtype in view.join_keys.items()}
        table = read_table(self.keys_file, types)
        fitting = {ref: view for ref, view in self.views.items() if set(view.join_keys) <= set(table.column_names)}
        if not fitting:
            raise InputError(
                f"preload: {self.keys_file} has no view's join keys; it has {', '.join(table.column_names)}, and the "
                f"views want {'; '.join(', '.join(view.join_keys) for view in self.views.values())}"
            )
        for ref, view in fitting.items():
            columns = [table.column(name).combine_chunks().cast(arrow_type(t)) for name, t in view.join_keys.items()]
            keys = encode_keys(columns, list(view.join_keys.values()), list(view.join_keys))
            self._load_keys(ref, keys.drop_null().unique())

    def _load_recent(self) -> None:
        """The keys whose rows have the latest event times, as many as fit."""
        for place, ref in enumerate(self.views):
            share = self.cache.room // (len(self.views) - place)
            keys: list[pa.BinaryArray] = []
            times: list[NDArray[np.int64]] = []
            size = 0
            for some, rows in self._scanned(ref):
                keys.append(some)
                times.append(OrderKeys.read_from(packing.first_bytes(rows, ORDER_KEY_BYTES)).event_us)
                size += rows.nbytes + some.nbytes + self.cache.entry_bytes * len(rows)
            if keys:
                event_us = np.concatenate(times)
                fitting = min(len(event_us), int(len(event_us) * share / size))
                latest = np.argsort(-event_us, kind="stable")[:fitting]
                self._load_keys(ref, pa.concat_arrays(keys).take(pa.array(latest)))

    def _load_all(self) -> None:
        """Every view's rows by bucket, each view up to an equal part of the room there is."""
        for place, ref in enumerate(self.views):
            share = self.cache.room // (len(self.views) - place)
            least = self.cache.room - share
            tokens = self.store.tokens(ref, _EVERY)
            for keys, rows in self._scanned(ref):
                buckets = bucket_of(keys)
                self._buckets[ref][buckets] = True
                if not self._fill(ref, keys, rows, tokens[buckets], self.cache.room - least):
                    break

    def _scanned(self, ref: str) -> Iterator[tuple[pa.BinaryArray, pa.BinaryArray]]:
        for batch in self.store.scan(ref, BATCH_ROWS):
            self._check_time()
            yield batch

    def _load_keys(self, ref: str, keys: pa.BinaryArray) -> None:
        for first in range(0, len(keys), BATCH_ROWS):
            self._check_time()
            some = keys.slice(first, BATCH_ROWS)
            buckets = bucket_of(some)
            distinct = np.unique(buckets)
            self._buckets[ref][distinct] = True
            tokens = self.store.tokens(ref, distinct)
            rows = self.store.read(ref, some)
            if not self._fill(ref, some, rows, tokens[np.searchsorted(distinct, buckets)], self.cache.room):
                return

    def _fill(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray, tokens: NDArray[np.int64], most: int) -> bool:
        """Whether all of it fitted."""
        filled = self.cache.fill(ref, keys.to_pylist(), rows.to_pylist(), tokens, most)
        self._rows += filled
        self._tell(ref)
        return filled == len(keys)

    def _check_time(self) -> None:
        if self.late():
            raise PreloadLate

    def _tell(self, what: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._told >= TELL_S:
            self._told = now
            mib, most = self.cache.size_bytes / (1 << 20), self.cache.bytes_max / (1 << 20)
            log.info(
                "preload: %s; %s rows, %.0f of %.0f MiB, %.1f s", what, f"{self._rows:,}", mib, most, now - self._began
            )
