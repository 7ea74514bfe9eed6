"""Requests that differ from an earlier one in the values of their keys only: read without parsing them again.

A client that asks for so many rows of a service sends the same bytes each time, but for the values. Their place is the
same in every message of that length whose other bytes are equal, since protobuf puts a length before them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from featurestore.errors import InputError
from serving.wire import LookupRequest

#: Shapes that are remembered: the first ones that come.
SHAPES_MAX = 256
#: Of one size, since each is looked at.
SAME_SIZE_MAX = 8
#: Longer messages cost more to look at than to parse.
BYTES_MAX = 16 << 10


class RequestShapes:
    """Reads requests as `decode` does; what that raises comes from it."""

    def __init__(self, decode: Callable[[bytes], LookupRequest]) -> None:
        self._decode = decode
        self._by_size: dict[int, list[_Shape]] = defaultdict(list)
        self._count = 0

    def decode(self, message: bytes) -> LookupRequest:
        """The request that the bytes are."""
        known = self._by_size.get(len(message), ())
        for shape in known:
            if shape.fits(message):
                return shape.read(message)
        request = self._decode(message)
        if len(message) <= BYTES_MAX and self._count < SHAPES_MAX and len(known) < SAME_SIZE_MAX:
            self._learn(message, request)
        return request

    def _learn(self, message: bytes, request: LookupRequest) -> None:
        if found := _shape(message, request, self._decode):
            self._by_size[len(message)].append(found)
            self._count += 1


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
