"""The Redis online store: one hash for each view and bucket, so that a bucket changes in one step with its token.

Decision note 5 says why a hash, and what it costs. Rows never expire in the server: readers decide EXPIRED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.errors import StoreError
from featurestore.online import packing
from featurestore.online.base import ALL_BUCKETS
from featurestore.online.keys import BUCKETS, bucket_of, bucket_of_hash, key_hash
from featurestore.online.redis import protocol, scripts, transactions
from featurestore.online.redis.exchange import Call, run
from featurestore.online.redis.reader import RedisReader
from featurestore.online.redis.scripts import KEYS_MAX, Script
from featurestore.online.redis.servers import RedisAddress, RedisServers, bucket_tag
from featurestore.online.row_layout import ORDER_KEY_BYTES

#: Rows and bytes of one call of a script, which holds the server for some 2 ms.
CALL_ROWS_MAX, CALL_BYTES_MAX = 1000, 1 << 18
#: Far below what a server takes in one argument (512 MB), and what SQLite takes.
ROW_BYTES_MAX = (1 << 26) - 1
#: Buckets that one step of `scan` reads, and fields that a server looks at in one go.
SCAN_BUCKETS, SCAN_FIELDS = 64, b"1000"

_BUCKET_BYTES = 2


class RedisOnlineStore:
    """Online rows of one project on a Redis server or Cluster; used by many threads and processes at once.

    What a call has written when it returns is what the server has; how durable that is, is set there (`appendonly`).
    Faults that may pass are waited for as long as the address says, then raised: StoreUnreachable, StoreFull,
    ConfigError (password, privilege, certificate), StoreError. `write` never counts a row twice; one whose answer got
    lost on the way may go uncounted.
    """

    def __init__(self, project: str, address: RedisAddress) -> None:
        self._servers = RedisServers(address, project)
        self._project = project
        self._hashes: dict[str, list[bytes]] = {}

    def write(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """Keep each row that is later than the stored one, bucket by bucket; returns how many were written."""
        assert int(np.diff(packing.byte_offsets(rows)).min(initial=ORDER_KEY_BYTES)) >= ORDER_KEY_BYTES
        return self._keep(ref, scripts.WRITE, keys, rows)

    def overwrite(self, ref: str, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        """For repair: store the rows whatever is stored, bucket by bucket; returns how many differed."""
        return self._keep(ref, scripts.OVERWRITE, keys, rows)

    def delete(self, ref: str, keys: pa.BinaryArray) -> int:
        """For repair: remove rows, bucket by bucket; returns how many there were."""
        assert keys.null_count == 0
        keys = keys.unique()
        order, buckets, _ = _by_bucket(keys)
        calls = _Calls.of(buckets, protocol.Arguments([keys], order), 1)
        return self._run(ref, scripts.DELETE, calls, range(len(calls.buckets)))

    def read(self, ref: str, keys: pa.BinaryArray) -> pa.BinaryArray:
        """The row of each key, aligned with `keys`; null where the key is null or nothing is stored."""
        asked = keys.drop_null() if keys.null_count else keys
        found = pa.array(self._fields(ref, bucket_of(asked).tolist(), asked.to_pylist()), pa.binary())
        if keys.null_count == 0:
            return found
        nulls = packing.null_mask(keys)
        return found.take(pa.array(np.cumsum(~nulls) - 1, mask=nulls))

    def tokens(self, ref: str, buckets: NDArray[np.uint16]) -> NDArray[np.int64]:
        """The token of each bucket, aligned with `buckets`: microseconds at its last change or a little more, or 0."""
        found = self._fields(ref, buckets.tolist(), [scripts.TOKEN] * len(buckets))
        return np.array([int(token or 0) for token in found], dtype=np.int64)

    def scan(
        self, ref: str, batch_rows: int, buckets: range = ALL_BUCKETS
    ) -> Iterator[tuple[pa.BinaryArray, pa.BinaryArray]]:
        """All (keys, rows) by bucket, then by key; `SCAN_BUCKETS` of 4096 buckets are held at a time."""
        waiting: list[pa.Table] = []
        for first in buckets[::SCAN_BUCKETS]:
            waiting.append(self._bucket_rows(ref, range(first, min(first + SCAN_BUCKETS, buckets.stop))))
            while sum(map(len, waiting)) >= batch_rows:
                table = pa.concat_tables(waiting)
                yield _columns(table.slice(0, batch_rows))
                waiting = [table.slice(batch_rows)]
        if any(map(len, waiting)):
            yield _columns(pa.concat_tables(waiting))

    def count(self, ref: str) -> int:
        """How many rows are stored."""
        hashes = self._hashes_of(ref)
        step = 1 if self._servers.clustered else KEYS_MAX
        parts = [hashes[first : first + step] for first in range(0, BUCKETS, step)]
        calls = [Call(place * step, (_called(scripts.COUNT, len(part), 0), *part)) for place, part in enumerate(parts)]
        return sum(run(self._servers, calls))

    def drop(self, ref: str) -> int:
        """Remove every row of the view, bucket by bucket; returns how many there were. Tokens stay, raised."""
        called = _called(scripts.DROP, 1, 0)
        calls = [Call(bucket, (called, key)) for bucket, key in enumerate(self._hashes_of(ref))]
        return sum(run(self._servers, calls))

    def evictions(self) -> int:
        """How many keys the servers gave up for want of memory, of whatever program."""
        return self._servers.evictions()

    def reader(self, timeout_s: float) -> RedisReader:
        """Reads from an event loop, over connections of its own; each answer is waited for so long."""
        return RedisReader(self._servers, self._project, timeout_s)

    def close(self) -> None:
        """Close every connection; no other call may be under way."""
        self._servers.close()

    def _keep(self, ref: str, script: Script, keys: pa.BinaryArray, rows: pa.BinaryArray) -> int:
        assert len(keys) == len(rows)
        assert keys.null_count == rows.null_count == 0
        if len(keys) == 0:
            return 0
        sizes = np.diff(packing.byte_offsets(rows))
        if int(sizes.max(initial=0)) > ROW_BYTES_MAX:
            raise StoreError(
                f"an online row takes {sizes.max():,} bytes, at most {ROW_BYTES_MAX:,} fit; use shorter values"
            )
        order, buckets, alone = _by_bucket(keys)
        if not alone:
            keys, rows = _latest(keys, rows)
            order, buckets, _ = _by_bucket(keys)
        calls = _Calls.of(buckets, protocol.Arguments([keys, rows], order), 2)
        if self._servers.clustered:  # where a transaction has one slot, and so one bucket
            return self._run(ref, script, calls, range(len(calls.buckets)))
        hashes, by_order = self._hashes_of(ref), script is scripts.WRITE
        batch = transactions.Rows(
            hashes=[hashes[bucket] for bucket in calls.buckets],
            edges=calls.edges,
            keys=protocol.Arguments([keys], order),
            pairs=calls.arguments,
            compared=_order_keys(rows, order) if by_order else rows.take(pa.array(order)),
            differs=transactions.later if by_order else transactions.other,
        )
        kept, left = transactions.write(self._servers, batch)
        return kept + self._run(ref, script, calls, left)

    def _run(self, ref: str, script: Script, asked: _Calls, chosen: Sequence[int]) -> int:
        """Run the script for some of the buckets; the sum of the answers."""
        if not chosen:
            return 0
        hashes, bodies = self._hashes_of(ref), protocol.joined(asked.arguments.part(), asked.edges)
        counts = [asked.width * (last - first) for first, last in pairwise(asked.edges)]
        calls = [
            Call(asked.buckets[at], (_called(script, 1, counts[at]), hashes[asked.buckets[at]], bodies[at]))
            for at in chosen
        ]
        return sum(run(self._servers, calls))

    # Lists, not columns: a request asks for some hundred keys, and packing these in Arrow takes 0.2 ms longer.

    def _fields(self, ref: str, buckets: list[int], names: list[bytes]) -> list[bytes | None]:
        """The field of that name in the hash of that bucket, None where there is none."""
        if self._servers.clustered:
            return self._fields_by_bucket(ref, buckets, names)
        hashes = self._hashes_of(ref)
        calls = []
        for first in range(0, len(names), KEYS_MAX):
            asked, fields = buckets[first : first + KEYS_MAX], names[first : first + KEYS_MAX]
            begin = _called(scripts.READ, len(asked), len(asked), read=True)
            calls.append(Call(0, (begin, *[hashes[bucket] for bucket in asked], *map(protocol.bulk, fields))))
        return list(chain.from_iterable(run(self._servers, calls)))

    def _fields_by_bucket(self, ref: str, buckets: list[int], names: list[bytes]) -> list[bytes | None]:
        """The same with a call for each bucket: its server is asked for no other key."""
        hashes, hmget = self._hashes_of(ref), protocol.bulk(b"HMGET")
        places: dict[int, list[int]] = {}
        for place, bucket in enumerate(buckets):
            places.setdefault(bucket, []).append(place)
        calls = [
            Call(bucket, (protocol.head(2 + len(own)), hmget, hashes[bucket], *[protocol.bulk(names[i]) for i in own]))
            for bucket, own in places.items()
        ]
        found: list[bytes | None] = [None] * len(names)
        for own, values in zip(places.values(), run(self._servers, calls), strict=True):
            for place, value in zip(own, values, strict=True):
                found[place] = value
        return found

    def _bucket_rows(self, ref: str, buckets: range) -> pa.Table:
        """All rows of some buckets, by bucket and key, each once."""
        hashes = self._hashes_of(ref)
        begin, end = protocol.head(5) + protocol.bulk(b"HSCAN"), protocol.bulk(b"COUNT") + protocol.bulk(SCAN_FIELDS)
        cursors = dict.fromkeys(buckets, b"0")
        owners: list[int] = []
        found: list[list[bytes]] = []
        while cursors:
            calls = [
                Call(bucket, (begin, hashes[bucket], protocol.bulk(cursor), end)) for bucket, cursor in cursors.items()
            ]
            answers = run(self._servers, calls)
            owners += cursors
            found += [fields for _, fields in answers]
            cursors = {bucket: cursor for bucket, (cursor, _) in zip(cursors, answers, strict=True) if cursor != b"0"}
        return _sorted_rows(np.repeat(owners, [len(fields) // 2 for fields in found]), found)

    def _hashes_of(self, ref: str) -> list[bytes]:
        """The key of each bucket's hash, as an argument."""
        hashes = self._hashes.get(ref)
        if hashes is None:
            end = f":{self._project}:{ref}".encode()
            hashes = [protocol.bulk(b"fs1:" + bucket_tag(bucket) + end) for bucket in range(BUCKETS)]
            self._hashes[ref] = hashes
        return hashes


@dataclass(frozen=True, slots=True, eq=False)
class _Calls:
    """Lines of `width` arguments in bucket order; call n has those from `edges[n]` to `edges[n + 1]`."""

    arguments: protocol.Arguments
    width: int
    edges: list[int]
    buckets: list[int]

    @classmethod
    def of(cls, buckets: NDArray[np.uint16], arguments: protocol.Arguments, width: int) -> _Calls:
        """Cut into calls, from the bucket of each line."""
        edges = _edges(buckets, arguments.offsets)
        return cls(arguments, width, edges, buckets[edges[:-1]].tolist())


def _called(script: Script, keys: int, arguments: int, *, read: bool = False) -> bytes:
    """How a call of the script begins; its keys and arguments follow."""
    name = b"EVALSHA_RO" if read else b"EVALSHA"
    return protocol.head(3 + keys + arguments) + b"".join(map(protocol.bulk, (name, script.sha, b"%d" % keys)))


def _order_keys(rows: pa.BinaryArray, order: NDArray[np.int64]) -> pa.BinaryArray:
    """How each row begins, in the given order."""
    return packing.from_matrix(packing.first_bytes(rows, ORDER_KEY_BYTES).take(order, axis=0))


def _latest(keys: pa.BinaryArray, rows: pa.BinaryArray) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Each key once, with the last of its rows in their order: a script compares with what is stored only."""
    table = pa.table({"key": keys, "order": pc.binary_slice(rows, 0, ORDER_KEY_BYTES)})
    order = pc.sort_indices(table, [("key", "ascending"), ("order", "ascending")])
    ordered = keys.take(order)
    last = pc.not_equal(ordered[:-1], ordered[1:]).to_numpy(zero_copy_only=False)
    kept = order.filter(pa.array(np.append(last, True)))
    return keys.take(kept), rows.take(kept)


def _by_bucket(keys: pa.BinaryArray) -> tuple[NDArray[np.int64], NDArray[np.uint16], bool]:
    """(places of the keys in bucket order, their buckets, whether all keys are known to differ: their hashes do)."""
    hashes = key_hash(keys)
    order = np.argsort(hashes)  # a bucket is the hash's top bits
    ordered = hashes[order]
    return order, bucket_of_hash(ordered), bool((ordered[1:] != ordered[:-1]).all())


def _edges(buckets: NDArray[np.uint16], offsets: NDArray[np.int64]) -> list[int]:
    """Where calls over sorted buckets begin, and where the last one ends: each has one bucket, and at most so many rows
    and (save one row) bytes.
    """
    count = len(buckets)
    new = np.ones(count, dtype=np.bool_)
    new[1:] = buckets[1:] != buckets[:-1]
    starts = np.flatnonzero(new)
    start = np.repeat(starts, np.diff(np.append(starts, count)))
    rows = (np.arange(count) - start) // CALL_ROWS_MAX
    size = (offsets[:-1] - offsets[start]) // CALL_BYTES_MAX
    new[1:] |= (rows[1:] != rows[:-1]) | (size[1:] != size[:-1])
    return [*np.flatnonzero(new).tolist(), count]


def _sorted_rows(buckets: NDArray[np.int64], found: Sequence[list[bytes]]) -> pa.Table:
    """Fields and values one after the other, as rows in order; the token is none, and a field may come twice."""
    flat = list(chain.from_iterable(found))
    keys, rows = pa.array(flat[::2], pa.binary()), pa.array(flat[1::2], pa.binary())
    prefix = packing.from_matrix(np.ascontiguousarray(buckets, dtype=">u2").view(np.uint8).reshape(-1, _BUCKET_BYTES))
    placed = packing.join([prefix, keys])
    order = pc.array_sort_indices(placed)
    ordered = placed.take(order)
    once = np.ones(len(ordered), dtype=np.bool_)
    once[1:] = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    once &= np.diff(packing.byte_offsets(ordered)) > _BUCKET_BYTES
    order = order.filter(pa.array(once))
    return pa.table({"key": keys.take(order), "row": rows.take(order)})


def _columns(table: pa.Table) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    return packing.as_array(table.column("key")), packing.as_array(table.column("row"))
