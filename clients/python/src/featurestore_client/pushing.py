"""What became of pushed rows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb


class PushStatus(IntEnum):
    """What became of one row; all but REJECTED are durable."""

    ACCEPTED = pb.PUSH_STATUS_ACCEPTED
    DUPLICATE = pb.PUSH_STATUS_DUPLICATE
    CORRECTION = pb.PUSH_STATUS_CORRECTION
    PENDING = pb.PUSH_STATUS_PENDING
    REJECTED = pb.PUSH_STATUS_REJECTED


@dataclass(frozen=True, kw_only=True)
class PushRejection:
    """The first rule that a row breaks; `row` counts from 0, `value` is JSON text."""

    row: int
    field: str
    rule: str
    reason: str
    value: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PushReply:
    """`statuses` has the number of a PushStatus per row; `pending_reason` is empty when no row is pending."""

    view: str
    statuses: NDArray[np.uint8]
    rejections: tuple[PushRejection, ...]
    pending_reason: str

    @classmethod
    def from_message(cls, message: pb.PushResponse) -> PushReply:
        """The reply in a message."""
        return cls(
            view=message.view,
            statuses=np.frombuffer(message.statuses, np.uint8),
            rejections=tuple(
                PushRejection(row=one.row, field=one.field, rule=one.rule, reason=one.reason, value=one.value)
                for one in message.rejections
            ),
            pending_reason=message.pending_reason,
        )
