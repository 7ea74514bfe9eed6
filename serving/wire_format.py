"""Pieces of protobuf's wire format, for what is written around values that lie in memory already.

Fields of a message may come in any order, and a message may come in pieces:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

Piece = bytes | memoryview

#: Kinds of fields.
VARINT, LENGTH = 0, 2


def before(field: int, size: int) -> bytes:
    """What stands before so many bytes of a field."""
    return tag(field, LENGTH) + varint(size)


def tag(field: int, kind: int) -> bytes:
    """What stands before a field."""
    return varint(field << 3 | kind)


def varint(value: int) -> bytes:
    """A number from 0 on: seven bits a byte, the lowest first."""
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
