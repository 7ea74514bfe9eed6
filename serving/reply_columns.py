"""The columns of replies in protobuf's wire format, assembled from what lies there anyway.

A message object a column costs more than all the rest of a reply. Names, types and lengths are the same in every reply
of so many rows, so those bytes are made once, and the values are put between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import pyarrow as pa

from featurestore.online.decoded_columns import BlockLayout
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.columns import column_writer, encode_type
from serving.plan import ServicePlan
from serving.response import OnlineResponse
from serving.wire_format import VARINT, Piece, before, tag, varint

#: Numbers of rows for which the bytes between values are kept.
ROW_COUNTS_MAX = 256

_COLUMNS = pb.GetOnlineFeaturesResponse.COLUMNS_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class _Frames:
    """What stands before the values of each column, for so many rows.

    `whole` where no value is null, each followed by a place for the values; else `heads`, the validity, `tails`.
    """

    whole: list[Piece]
    heads: list[bytes]
    tails: list[bytes]


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """Where columns are found in replies whose blocks have certain layouts.

    `in_order` picks, from the lines of all blocks and one more, what each column has; `of_line` are the columns by
    line; `others` those that are no line of a block.
    """

    in_order: Callable[[list[Piece]], Sequence[Piece]]
    of_line: dict[int, list[int]]
    others: list[int]


class ReplyColumns:
    """Writes the columns of one plan's replies."""

    def __init__(self, plan: ServicePlan) -> None:
        self._plan = plan
        outputs = plan.outputs
        self._heads = [pb.Column(name=output.name, type=encode_type(output.field.dtype)) for output in outputs]
        self._widths: list[int | None] = [output.field.dtype.width for output in outputs]  # type: ignore[attr-defined]
        self._writers: list[Callable[[pb.Column, pa.Array], None]] = [
            column_writer(output.field.dtype) for output in outputs
        ]
        self._frames = lru_cache(maxsize=ROW_COUNTS_MAX)(self._made_frames)
        self._arrangement = lru_cache(maxsize=ROW_COUNTS_MAX)(self._made_arrangement)

    def pieces(self, response: OnlineResponse) -> list[Piece]:
        """The bytes of all columns, to be joined. Nothing is done by column but for nulls, text, lists and the like."""
        frames = self._frames(response.rows)
        arrangement = self._arrangement(tuple(decoded.layouts for decoded in response.decoded))
        blocks = [block for decoded in response.decoded for block in decoded.blocks]
        lines: list[Piece] = [line for block in blocks for line in block.values()]
        lines.append(b"")
        pieces = frames.whole.copy()
        pieces[1::2] = arrangement.in_order(lines)
        first = 0
        for block in blocks:
            for line, bitmap in block.validity().items():
                for place in arrangement.of_line[first + line]:
                    pieces[2 * place] = b"".join((frames.heads[place], bitmap, frames.tails[place]))
            first += len(block.layout.lines)
        for place in arrangement.others:
            pieces[2 * place] = self._whole_message(place, response.column(place))
        return pieces

    def _whole_message(self, place: int, array: pa.Array) -> bytes:
        column = pb.Column()
        column.CopyFrom(self._heads[place])
        self._writers[place](column, array)
        message = column.SerializeToString()
        return before(_COLUMNS, len(message)) + message

    def _made_frames(self, rows: int) -> _Frames:
        count = tag(pb.Column.ROWS_FIELD_NUMBER, VARINT) + varint(rows)
        bits = -(-rows // 8)
        bitmap = before(pb.Column.VALIDITY_FIELD_NUMBER, bits)
        frames = _Frames([], [], [])
        for head, width in zip(self._heads, self._widths, strict=True):
            size = rows * (width or 0)
            start, tail = head.SerializeToString() + count, before(pb.Column.VALUES_FIELD_NUMBER, size)
            plain = len(start) + len(tail) + size
            frames.whole.extend((before(_COLUMNS, plain) + start + tail, b""))
            frames.heads.append(before(_COLUMNS, plain + len(bitmap) + bits) + start + bitmap)
            frames.tails.append(tail)
        return frames

    def _made_arrangement(self, layouts: tuple[tuple[BlockLayout, ...], ...]) -> _Arrangement:
        numbers: dict[tuple[int, int], int] = {}
        lines = [(view, line) for view, own in enumerate(layouts) for layout in own for line in layout.lines]
        for number, (view, line) in enumerate(lines):
            numbers |= {(view, position): number for position in line.positions}
        of_line: dict[int, list[int]] = defaultdict(list)
        others: list[int] = []
        order: list[int] = []
        for place, found in enumerate(self._plan.places):
            number = len(lines) if found is None else numbers.get(found, len(lines))
            order.append(number)
            (others if number == len(lines) else of_line[number]).append(place)
        # With one item, itemgetter gives no sequence.
        in_order: Any = itemgetter(*order) if len(order) > 1 else lambda lines: [lines[number] for number in order]
        return _Arrangement(in_order, dict(of_line), others)
