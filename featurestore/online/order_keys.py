"""The order of rows (design rule 1) as columns and as the 24 bytes that open every packed row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.compiler.names import CREATED, EVENT, SEQUENCE

_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True, eq=False)
class OrderKeys:
    """What orders the rows of one entity, a column each; a view without created timestamps repeats its event times.

    As bytes: three big-endian int64 with the sign bit flipped, so that bytes compare as the rows are ordered.
    """

    event_us: NDArray[np.int64]
    created_us: NDArray[np.int64]
    sequence: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert len(self.event_us) == len(self.created_us) == len(self.sequence)

    def __len__(self) -> int:
        return len(self.event_us)

    @classmethod
    def of(cls, rows: pa.Table) -> OrderKeys:
        """The order keys of history rows."""
        times = (rows.column(name).combine_chunks().cast(pa.int64()).to_numpy() for name in (EVENT, CREATED))
        event_us, created_us = times
        return cls(event_us=event_us, created_us=created_us, sequence=rows.column(SEQUENCE).combine_chunks().to_numpy())

    def at(self, row: int) -> tuple[int, int, int]:
        """(event, created, sequence) of one row."""
        return int(self.event_us[row]), int(self.created_us[row]), int(self.sequence[row])

    def part(self, rows: slice) -> OrderKeys:
        """Those of some rows."""
        return OrderKeys(self.event_us[rows], self.created_us[rows], self.sequence[rows])

    def write_to(self, matrix: NDArray[np.uint8]) -> None:
        """Put the order keys into the first 24 columns of a byte matrix."""
        words = matrix[:, :24].view(">u8")
        for place, column in enumerate((self.event_us, self.created_us, self.sequence)):
            assert column.dtype == np.int64
            words[:, place] = column.view(np.uint64) ^ _SIGN

    @classmethod
    def read_from(cls, matrix: NDArray[np.uint8]) -> OrderKeys:
        """The order keys in the first 24 columns of a byte matrix."""
        words = matrix[:, :24].view(">u8").T.astype(np.uint64, order="C")
        words ^= _SIGN
        event_us, created_us, sequence = words.view(np.int64)
        return cls(event_us=event_us, created_us=created_us, sequence=sequence)
