"""The columns of replies in protobuf's wire format, assembled from what lies there anyway.

A message object a column costs more than all the rest of a reply. Names, types and lengths are the same in every reply
of so many rows, so those bytes are made once, and the values are put between them. (Fields of a message may come in any
order, and a message may come in pieces: https://protobuf.dev/programming-guides/encoding/.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from featurestore.online.decoded_columns import Words
from featurestore.outputs import Output
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.columns import column_writer, encode_type

#: Numbers of rows for which the bytes between values are kept.
ROW_COUNTS_MAX = 256

_VARINT, _LENGTH = 0, 2
_COLUMNS = pb.GetOnlineFeaturesResponse.COLUMNS_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands before the values of a column of so many rows, where none is null and where some are; what between
    values and validity."""

    whole: bytes
    some_null: bytes
    validity: bytes


class ReplyColumns:
    """Writes the columns of one plan's replies."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._heads = [pb.Column(name=output.name, type=encode_type(output.field.dtype)) for output in outputs]
        self._widths = [output.field.dtype.width for output in outputs]  # type: ignore[attr-defined]
        self._writers: list[Callable[[pb.Column, pa.Array], None]] = [
            column_writer(output.field.dtype) for output in outputs
        ]
        self._frames = lru_cache(maxsize=ROW_COUNTS_MAX)(self._made_frames)

    def pieces(self, columns: Iterable[Words | pa.Array], rows: int) -> list[bytes | memoryview]:
        """The bytes of all columns, to be joined."""
        pieces: list[bytes | memoryview] = []
        for place, (column, frame) in enumerate(zip(columns, self._frames(rows), strict=True)):
            if not isinstance(column, Words):
                pieces += self._whole_message(place, column)
            elif column.validity:
                pieces += (frame.some_null, column.values, frame.validity, column.validity)
            else:
                pieces += (frame.whole, column.values)
        return pieces

    def _whole_message(self, place: int, array: pa.Array) -> tuple[bytes, bytes]:
        column = pb.Column()
        column.CopyFrom(self._heads[place])
        self._writers[place](column, array)
        message = column.SerializeToString()
        return _tag(_COLUMNS, _LENGTH) + _varint(len(message)), message

    def _made_frames(self, rows: int) -> list[_Frame]:
        count = _tag(pb.Column.ROWS_FIELD_NUMBER, _VARINT) + _varint(rows)
        bitmap = _before(pb.Column.VALIDITY_FIELD_NUMBER, -(-rows // 8))
        frames = []
        for head, width in zip(self._heads, self._widths, strict=True):
            size = rows * (width or 0)
            before = head.SerializeToString() + count + _before(pb.Column.VALUES_FIELD_NUMBER, size)
            whole = len(before) + size
            frames.append(
                _Frame(
                    _before(_COLUMNS, whole) + before,
                    _before(_COLUMNS, whole + len(bitmap) + -(-rows // 8)) + before,
                    bitmap,
                )
            )
        return frames


def _before(field: int, size: int) -> bytes:
    """What stands before so many bytes of a field."""
    return _tag(field, _LENGTH) + _varint(size)


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _varint(value: int) -> bytes:
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
