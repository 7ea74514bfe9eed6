"""Writes as optimistic transactions: the same compare-and-set as the script's, at a third of the server's time.

The buckets of a window are watched and their rows read; what is later goes back in one transaction, which the server
refuses when anybody has touched one of the buckets meanwhile. What is refused, or not allowed, is left to the script.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
from numpy.typing import NDArray
from redis import exceptions as redis_errors

from featurestore.online.redis import protocol
from featurestore.online.redis.exchange import WINDOW_BYTES, received
from featurestore.online.redis.scripts import TOKEN
from featurestore.online.redis.servers import RedisServers
from featurestore.online.row_layout import ORDER_KEY_BYTES

Mask = NDArray[np.bool_]
#: Whether each row (or its order key) replaces the stored one, which is null where there is none.
Differs = Callable[[pa.BinaryArray, pa.BinaryArray], Mask]

_WATCH, _HMGET, _HSET, _TOKEN = (protocol.bulk(text) for text in (b"WATCH", b"HMGET", b"HSET", TOKEN))
#: How a server refuses what only transactions need.
_LACKING = re.compile("'(watch|multi|exec)'")
_TIME, _MULTI, _EXEC = (protocol.command(text) for text in (b"TIME", b"MULTI", b"EXEC"))


def later(order_keys: pa.BinaryArray, stored: pa.BinaryArray) -> Mask:
    """By order key; what is too short to have one is no row of ours."""
    theirs = pc.binary_slice(stored, 0, ORDER_KEY_BYTES)
    return _mask(pc.or_(pc.less(theirs, order_keys), pc.less(pc.binary_length(theirs), ORDER_KEY_BYTES)))


def other(rows: pa.BinaryArray, stored: pa.BinaryArray) -> Mask:
    """By any difference."""
    return _mask(pc.not_equal(rows, stored))


def _mask(differs: pa.BooleanArray) -> Mask:
    mask: Mask = differs.fill_null(True).to_numpy(zero_copy_only=False)
    return mask


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """Rows in bucket order, no key twice; call n writes those from `edges[n]` to `edges[n + 1]` into `hashes[n]`."""

    hashes: Sequence[bytes]
    edges: list[int]
    #: The keys, and each key with its row.
    keys: protocol.Arguments
    pairs: protocol.Arguments
    #: What `differs` takes of each row.
    compared: pa.BinaryArray
    differs: Differs

    @property
    def windows(self) -> list[range]:
        """Calls one after the other, `WINDOW_BYTES` at a time."""
        window = self.pairs.offsets[self.edges[:-1]] // WINDOW_BYTES
        edges = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(window)]
        return [range(first, last) for first, last in pairwise(edges)]

    def asking(self, window: range) -> bytes:
        """Commands that watch the buckets of some calls and ask for the time and their rows, each token last."""
        hashes = self.hashes[window.start : window.stop]
        pieces: list[bytes | memoryview] = [protocol.head(1 + len(hashes)), _WATCH, *hashes, _TIME]
        own, edges = self._lines(window)
        for hash_, (first, last), keys in zip(
            hashes, pairwise(edges), protocol.joined(self.keys.part(own), edges), strict=True
        ):
            pieces += (protocol.head(3 + last - first), _HMGET, hash_, keys, _TOKEN)
        return b"".join(pieces)

    def answering(self, window: range, time_us: int, found: Sequence[list[bytes | None]]) -> tuple[bytes, int, int]:
        """(a transaction that writes what differs from what was found, its answers, its rows)."""
        tokens = [stored.pop() for stored in found]
        own, kept = self._lines(window)
        stored = pa.array(list(chain.from_iterable(found)), pa.binary())
        differs = None
        if stored.null_count < len(stored):
            differs = self.differs(self.compared[own], stored)
            kept = np.append(0, np.cumsum(differs))[kept].tolist()
        bodies = protocol.joined(self.pairs.part(own, differs), kept)
        pieces: list[bytes | memoryview] = [_MULTI]
        for call, token, (first, last), body in zip(window, tokens, pairwise(kept), bodies, strict=True):
            if first < last:
                raised = protocol.bulk(b"%d" % max(time_us, _number(token) + 1))
                pieces += (protocol.head(4 + 2 * (last - first)), _HSET, self.hashes[call], _TOKEN, raised, body)
        pieces.append(_EXEC)
        return b"".join(pieces), 2 + len(pieces) // 6, kept[-1]

    def _lines(self, window: range) -> tuple[slice, list[int]]:
        """The lines of some calls, and where each call begins in them."""
        edges = self.edges[window.start : window.stop + 1]
        return slice(edges[0], edges[-1]), [edge - edges[0] for edge in edges]


def write(servers: RedisServers, rows: Rows) -> tuple[int, Sequence[int]]:
    """(rows kept, calls left to the script), with a fault of the connection counted as a try.

    A single window is left too: it takes two round trips here.
    """
    kept = 0
    left = dict.fromkeys(range(len(rows.hashes)))
    windows = rows.windows
    if len(windows) < 2:
        return 0, list(left)
    written = _written(servers, rows, windows)

    def attempt() -> None:
        nonlocal kept
        for window, count in written:  # after a fault it is at its end
            kept += count
            for call in window:
                del left[call]

    servers.bounded(attempt)
    return kept, list(left)


def _written(servers: RedisServers, rows: Rows, windows: Sequence[range]) -> Iterator[tuple[range, int]]:
    """(calls, rows kept) of each window that is written; errors of the server's own end it without a word, for the
    script to meet them, but for a right that only transactions need.

    Two connections take turns, so that the server writes one window while we compare the next.
    """
    lanes: list[_Lane] = []
    pool = servers.pool(0)
    try:
        for _ in range(2):
            lanes.append(_Lane(pool, rows))
        lanes[0].try_transaction()
        for turn in range(len(windows) + 2):
            lane, waiting = lanes[turn % 2], lanes[(turn + 1) % 2]
            if turn < len(windows):
                lane.ask(windows[turn])
            waiting.answer()
            yield from lane.written()
    except (redis_errors.NoPermissionError, redis_errors.ExecAbortError) as error:
        if _LACKING.search(str(error)):  # any other right, of a key perhaps, the script misses as well
            servers.warn_of_scripts(error)
    except redis_errors.ResponseError:
        return
    finally:
        for lane in lanes:
            lane.release()


class _Lane:
    """A connection over which one window is asked for while the one before it is written."""

    def __init__(self, pool: redis.ConnectionPool, rows: Rows) -> None:
        self._pool, self._rows = pool, rows
        self._connection: Any = pool.get_connection()
        self._asked: range | None = None
        #: Calls, answers to come, rows.
        self._sent: tuple[range, int, int] | None = None

    def try_transaction(self) -> None:
        """An empty one: a user without MULTI would have the writes of the first done, and not as one."""
        self._sent = range(0), 2, 0
        self._connection.send_packed_command([_MULTI + _EXEC])
        self._receive(2)
        self._sent = None

    def ask(self, window: range) -> None:
        """Watch and read the buckets of some calls."""
        self._asked = window
        self._connection.send_packed_command([self._rows.asking(window)])

    def answer(self) -> None:
        """Send what differs from the window that was asked for."""
        if self._asked is not None:
            _, (seconds, micros), *found = self._receive(2 + len(self._asked))
            time_us = 1_000_000 * int(seconds) + int(micros)
            transaction, answers, rows = self._rows.answering(self._asked, time_us, found)
            self._connection.send_packed_command([transaction])
            self._sent = self._asked, answers, rows
            self._asked = None

    def written(self) -> Iterator[tuple[range, int]]:
        """(calls, rows) of the window that was sent, unless the server has refused it."""
        if self._sent is not None:
            window, answers, rows = self._sent
            done = self._receive(answers)[-1]
            self._sent = None
            if done is not None and not any(isinstance(answer, Exception) for answer in done):
                yield window, rows

    def release(self) -> None:
        """Give the connection back, closed when answers are still to come."""
        if self._asked is not None or self._sent is not None:
            self._connection.disconnect()
        self._pool.release(self._connection)

    def _receive(self, count: int) -> list[Any]:
        answers = list(received(self._connection, count))
        if (refused := next((one for one in answers if isinstance(one, Exception)), None)) is not None:
            raise refused
        return answers


def _number(token: bytes | None) -> int:
    return int(token) if token is not None and token.isdigit() else 0
