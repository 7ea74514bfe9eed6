"""Rows of the online store in a worker's memory, each current for as long as the token of its bucket says so.

An entry keeps the token that was read before its row. It answers while a token read at most `bound_s` ago equals it; so
a change is seen within that time, and touches the entries of its own bucket only. Memory is bounded by two generations:
what is used moves into the young one, and when that is full, the old one goes as a whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.online.keys import BUCKETS
from featurestore.online.reading import Standing, Wanted

#: What an entry takes beside its key and row: a place in the index, three objects' heads, a token (measured: 250).
ENTRY_BYTES = 256
#: Tokens of buckets that nobody asked for in this time are not read again.
USED_S = 10.0

#: A row, None where the store has none, and the token that was read before it.
Entry = tuple[bytes | None, int]
_ROW: Callable[[Any], Any] = itemgetter(0)
_TOKEN: Callable[[Any], Any] = itemgetter(1)


@dataclass(slots=True)
class Counts:
    """What the cache answered, in keys."""

    hits: int = 0
    misses: int = 0
    unconfirmed: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What the cache has for some keys of one view: an entry or None for each key, and which are current."""

    wanted: Wanted
    keys: list[bytes]
    entries: list[Entry | None]
    current: NDArray[np.bool_]
    whole: bool

    def rows(self) -> list[bytes | None]:
        """The row of each entry; None where there is no entry."""
        if self.whole:
            return list(map(_ROW, self.entries))
        return [entry[0] if entry else None for entry in self.entries]


@dataclass(slots=True, eq=False)
class _Tokens:
    """The last token known of each bucket of a view, when it was asked for, and when the bucket was last used."""

    value: NDArray[np.int64] = field(default_factory=lambda: np.full(BUCKETS, -1, dtype=np.int64))
    asked_at: NDArray[np.float64] = field(default_factory=lambda: np.full(BUCKETS, -np.inf))
    told_at: NDArray[np.float64] = field(default_factory=lambda: np.full(BUCKETS, -np.inf))
    used_at: NDArray[np.float64] = field(default_factory=lambda: np.full(BUCKETS, -np.inf))


class NearCache:
    """A cache of `bytes_max` for one event loop; `ticks` gives seconds that never go back."""

    def __init__(self, bytes_max: int, bound_s: float, ticks: Callable[[], float] = time.monotonic) -> None:
        self.bytes_max, self.bound_s, self._ticks = bytes_max, bound_s, ticks
        #: By view.
        self.counts: dict[str, Counts] = defaultdict(Counts)
        self._tokens: dict[str, _Tokens] = {}
        self._young: dict[str, dict[bytes, Entry]] = {}
        self._old: dict[str, dict[bytes, Entry]] = {}
        self._young_bytes = self._old_bytes = 0

    def __len__(self) -> int:
        """Entries; one that moved into the young generation counts twice until the old one goes."""
        return sum(map(len, (*self._young.values(), *self._old.values())))

    @property
    def size_bytes(self) -> int:
        """Memory taken, by the measure of `bytes_max`."""
        return self._young_bytes + self._old_bytes

    @property
    def entry_bytes(self) -> int:
        """What an entry counts beside its key and row."""
        return ENTRY_BYTES

    def now(self) -> float:
        """The time by which tokens age."""
        return self._ticks()

    def look(self, wanted: Wanted) -> Look:
        """What is known of these keys; counts hits and misses."""
        now = self._ticks()
        tokens = self._tokens_of(wanted.ref)
        tokens.used_at[wanted.buckets] = now
        keys = wanted.keys.to_pylist()
        entries = self._entries(wanted.ref, keys)
        confirmed = now - tokens.asked_at[wanted.buckets] <= self.bound_s
        current = confirmed & (_tokens(entries) == tokens.value[wanted.buckets])
        hits = int(np.count_nonzero(current))
        counts = self.counts[wanted.ref]
        counts.hits += hits
        counts.misses += len(keys) - hits
        return Look(wanted, keys, entries, current, hits == len(keys))

    def standings(self, look: Look, longest_s: float) -> NDArray[np.uint8]:
        """How each entry stands while no token can be read: UNKNOWN when its last one is older than `longest_s`."""
        tokens, buckets = self._tokens_of(look.wanted.ref), look.wanted.buckets
        usable = _tokens(look.entries) == tokens.value[buckets]
        usable &= self._ticks() - tokens.asked_at[buckets] <= longest_s
        standings = np.where(usable, np.uint8(Standing.UNCONFIRMED), np.uint8(Standing.UNKNOWN))
        standings[look.current] = Standing.CONFIRMED
        self.counts[look.wanted.ref].unconfirmed += int(np.count_nonzero(standings == Standing.UNCONFIRMED))
        return standings

    def heard(self, ref: str, buckets: NDArray[np.uint16], values: NDArray[np.int64], asked_at: float) -> None:
        """Tokens that the store told, asked for at `asked_at`. A lower one: the store lost something, so all go."""
        tokens = self._tokens_of(ref)
        lower = values < tokens.value[buckets]
        # Answers of exchanges that went on at the same time may come in any order: the later token stays.
        crossed = lower & (asked_at <= tokens.told_at[buckets])
        if bool((lower & ~crossed).any()):
            self.clear()
            tokens, crossed = self._tokens_of(ref), np.zeros(len(buckets), dtype=bool)
        heard = buckets[~crossed]
        tokens.value[heard] = values[~crossed]
        tokens.asked_at[heard] = np.maximum(tokens.asked_at[heard], asked_at)
        tokens.told_at[heard] = self._ticks()

    def keep(self, ref: str, keys: Sequence[bytes], rows: Sequence[bytes | None], tokens: NDArray[np.int64]) -> None:
        """Keep rows, None for keys without one, each with the token that was read before it."""
        self._young.setdefault(ref, {}).update(zip(keys, zip(rows, tokens.tolist(), strict=True), strict=True))
        # An entry that replaces another is counted again: the bound errs on the safe side.
        self._young_bytes += sum(map(len, keys)) + sum(map(len, filter(None, rows))) + ENTRY_BYTES * len(keys)
        if self._young_bytes > self.bytes_max // 2:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0

    @property
    def room(self) -> int:
        """Bytes that `fill` still takes."""
        half = self.bytes_max // 2
        return max(0, half - self._young_bytes) + (0 if self._old else half)

    def fill(
        self, ref: str, keys: Sequence[bytes], rows: Sequence[bytes | None], tokens: NDArray[np.int64], most: int
    ) -> int:
        """Keep as many of the first rows as fit into `most` bytes and the room there is, driving none out; how many."""
        sizes = np.fromiter(
            (len(key) + len(row or b"") + ENTRY_BYTES for key, row in zip(keys, rows, strict=True)), int
        )
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), most, side="right"))]
        kept = 0
        while kept < len(sizes) and self.room:
            left = self.bytes_max // 2 - self._young_bytes
            count = int(np.searchsorted(np.cumsum(sizes[kept:]), left, side="right"))
            # The row that crosses the middle turns the young generation into the old one; a second time it may not.
            end = kept + count + (0 if self._old else 1)
            if end == kept:
                break
            end = min(end, len(sizes))
            self.keep(ref, keys[kept:end], rows[kept:end], tokens[kept:end])
            kept = end
        return kept

    def clear(self) -> None:
        """Forget every entry and every token."""
        self._tokens.clear()
        self._young.clear()
        self._old.clear()
        self._young_bytes = self._old_bytes = 0

    def refs(self) -> list[str]:
        """The views that were asked for."""
        return list(self._tokens)

    def used_buckets(self, ref: str) -> NDArray[np.uint16]:
        """Buckets of a view that were used a short while ago."""
        used_at = self._tokens_of(ref).used_at
        return np.flatnonzero(self._ticks() - used_at <= USED_S).astype(np.uint16)

    def use(self, ref: str, buckets: NDArray[np.bool_]) -> None:
        """Take buckets for used, True at theirs: what was preloaded is about to be."""
        self._tokens_of(ref).used_at[buckets] = self._ticks()

    def _tokens_of(self, ref: str) -> _Tokens:
        tokens = self._tokens.get(ref)
        if tokens is None:
            tokens = self._tokens[ref] = _Tokens()
        return tokens

    def _entries(self, ref: str, keys: list[bytes]) -> list[Entry | None]:
        """The entry of each key; those of the old generation move into the young one."""
        entries: list[Entry | None] = list(map(self._young.get(ref, {}).get, keys))
        old = self._old.get(ref)
        if not old or None not in entries:
            return entries
        absent = [entry is None for entry in entries]
        lost = list(compress(keys, absent))
        moved = {key: entry for key, entry in zip(lost, map(old.get, lost), strict=True) if entry is not None}
        if not moved:
            return entries
        rows, tokens = zip(*moved.values(), strict=True)
        self.keep(ref, list(moved), rows, np.array(tokens, dtype=np.int64))
        return [entry or moved.get(key) for key, entry in zip(keys, entries, strict=True)]


def _tokens(entries: list[Entry | None]) -> NDArray[np.int64]:
    """The token of each entry; none is as low as where there is no entry."""
    if None in entries:
        return np.array([entry[1] if entry else -2 for entry in entries], dtype=np.int64)
    return np.fromiter(map(_TOKEN, entries), dtype=np.int64, count=len(entries))


def as_rows(rows: Sequence[bytes | None]) -> pa.BinaryArray:
    """Rows as the lookup takes them."""
    return pa.array(rows, pa.binary())
