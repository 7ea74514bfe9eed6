"""Requests that differ from an earlier one in the values of their keys only: read without parsing them again.

A client that asks for so many rows of a service sends the same bytes each time, but for the values. Their place is the
same in every message of that length whose other bytes are equal, since protobuf puts a length before them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from featurestore.errors import InputError
from serving.wire import LookupRequest

#: Shapes that are remembered, and of one size, since each of those is looked at.
SHAPES_MAX, SAME_SIZE_MAX = 256, 8
#: To learn a shape costs as much as to parse four requests. Once so many were tried, it is done for one in so many
#: others, and takes the place of the oldest.
TRIED_MAX, LATER_EACH = 512, 64
#: Longer messages cost more to look at than to parse.
BYTES_MAX = 16 << 10


class RequestShapes:
    """Knows requests by their shape, once it was told of one; `decode` parses them. For one event loop."""

    def __init__(self, decode: Callable[[bytes], LookupRequest]) -> None:
        self._decode = decode
        self._by_size: dict[int, list[_Shape]] = defaultdict(list)
        #: The size of each shape, the oldest first.
        self._sizes: deque[int] = deque()
        self._tried = 0

    def known(self, message: bytes) -> LookupRequest | None:
        """The request that the bytes are, if it has a shape that is known."""
        for shape in self._by_size.get(len(message), ()):
            if shape.fits(message):
                return shape.read(message)
        return None

    def learn(self, message: bytes, request: LookupRequest) -> None:
        """Remember the shape of a message that is this request, and was answered."""
        size = len(message)
        if size > BYTES_MAX or len(self._by_size.get(size, ())) >= SAME_SIZE_MAX:
            return
        self._tried += 1
        if self._tried > TRIED_MAX and self._tried % LATER_EACH:
            return
        if (found := _shape(message, request, self._decode)) is not None:
            if len(self._sizes) >= SHAPES_MAX:
                self._by_size[self._sizes.popleft()].pop(0)
            self._by_size[size].append(found)
            self._sizes.append(size)


@dataclass(frozen=True, slots=True)
class _Values:
    """Where the values of a join key stand."""

    name: str
    type: pa.DataType
    rows: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """`fixed` are the bytes around the values, each with its place; `like` is a request of this shape."""

    fixed: tuple[tuple[int, bytes], ...]
    values: tuple[_Values, ...]
    like: LookupRequest

    def fits(self, message: bytes) -> bool:
        """Whether a message of this length has this shape."""
        return all([message.startswith(piece, place) for place, piece in self.fixed])

    def read(self, message: bytes) -> LookupRequest:
        """The request that a message of this shape is."""
        like = self.like
        keys = {
            own.name: pa.Array.from_buffers(own.type, own.rows, [None, pa.py_buffer(message[own.first : own.last])])
            for own in self.values
        }
        return LookupRequest(
            choice=like.choice, keys=keys, request={}, max_age=like.max_age, reply_format=like.reply_format
        )


def _shape(message: bytes, request: LookupRequest, decode: Callable[[bytes], LookupRequest]) -> _Shape | None:
    """The shape of a request whose only variable bytes are numbers without nulls; None of any other.

    That the values stand where their bytes are found is proved by turning all of them round: everything else of the
    request must stay as it is.
    """
    values = _places(message, request)
    if request.request or not values:
        return None
    turned = bytearray(message)
    for own in values:
        turned[own.first : own.last] = _turned(message[own.first : own.last])
    try:
        other = decode(bytes(turned))
    except InputError:
        return None
    edges = [0, *(edge for own in sorted(values, key=lambda own: own.first) for edge in (own.first, own.last))]
    fixed = tuple(
        (first, message[first:last]) for first, last in [*list(pairwise(edges))[::2], (edges[-1], len(message))]
    )
    shape = _Shape(fixed, values, request)
    return shape if _same(other, shape.read(bytes(turned))) else None


def _places(message: bytes, request: LookupRequest) -> tuple[_Values, ...]:
    """Where the values of each join key may stand; nothing when one of them has none, or others than plain numbers."""
    places: list[_Values] = []
    for name, array in request.keys.items():
        kind = array.type
        plain = pa.types.is_primitive(kind) and kind.bit_width % 8 == 0 and array.buffers()[0] is None
        data = array.buffers()[1].to_pybytes() if plain and len(array) else b""
        first = message.find(data) if data else -1
        if first < 0 or any(first < other.last and other.first < first + len(data) for other in places):
            return ()
        places.append(_Values(name, kind, len(array), first, first + len(data)))
    return tuple(places)


def _turned(data: bytes) -> bytes:
    return (~np.frombuffer(data, np.uint8)).tobytes()


def _same(left: LookupRequest, right: LookupRequest) -> bool:
    """Whether two requests are one, bit by bit: a NaN equals itself here."""
    return (
        (left.choice, left.request, left.max_age, left.reply_format)
        == (right.choice, right.request, right.max_age, right.reply_format)
        and list(left.keys) == list(right.keys)
        and all(
            own.type == other.type and own.null_count == 0 and own.buffers()[1].equals(other.buffers()[1])
            for own, other in zip(left.keys.values(), right.keys.values(), strict=True)
        )
    )
