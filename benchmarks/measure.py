"""How things are timed and reported: sides in turn, best and median, and no ratio before the results are equal."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

#: Seed of everything made up.
SEED = 20130101
#: Calls of one side before it is the next one's turn.
BLOCK = 25


class Unequal(Exception):
    """Two sides that should give the same rows did not; no figure may come of it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure. `required` is what the design asks for, compared as `sense` says; None where nothing is asked."""

    what: str
    value: float
    unit: str
    required: float | None = None
    sense: str = "at least"
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the requirement is met; None without one."""
        if self.required is None:
            return None
        return self.value >= self.required if self.sense == "at least" else self.value <= self.required

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one benchmark found, with the sizes it ran at."""

    name: str
    sizes: Mapping[str, Any]
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "sizes": dict(self.sizes),
            "measured": [one.document() for one in self.measured],
            "notes": self.notes,
        }


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How to run: `size` names an entry of each benchmark's SIZES, `work` is removed afterwards, `keep` is not."""

    size: str
    work: Path
    keep: Path
    show: Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """The seconds of each run of one side."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The quickest run, which noise disturbed least."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The run in the middle."""
        return statistics.median(self.seconds)

    def percentile(self, share: float) -> float:
        """The time that `share` of the runs stayed within."""
        return float(np.quantile(self.seconds, share, method="higher"))

    def says(self, unit: str = "s") -> str:
        """Best and median of N, for people."""
        factor = {"s": 1, "ms": 1e3}[unit]
        return f"best {self.best * factor:.3f}, median {self.median * factor:.3f} {unit} of {len(self.seconds)}"


def in_turn(sides: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Times]:
    """The sides timed one after the other, `runs` rounds of it, so that what disturbs one disturbs the others too.

    Garbage is collected before each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            gc.collect()
            seconds[name].append(_timed(side))
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


def steadily(sides: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Times]:
    """Short calls, `runs` of each side: as in steady traffic, so the sides take turns by blocks of `BLOCK` calls.

    A call after a pause pays for what others have put into the processor's caches meanwhile, three times its work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for done in range(0, runs, BLOCK):
        for name, side in sides.items():
            seconds[name] += [_timed(side) for _ in range(min(BLOCK, runs - done))]
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


def _timed(side: Callable[[], object]) -> float:
    started = time.perf_counter()
    kept = side()
    taken = time.perf_counter() - started
    del kept  # freed outside of the next side's time
    return taken


def timed(call: Callable[[], object], runs: int) -> Times:
    """One side alone."""
    return in_turn({"": call}, runs)[""]


def ratio(what: str, theirs: Times, ours: Times, *, required: float | None = None) -> Measured:
    """How many times as fast ours is, by the best runs; the detail gives the medians too."""
    by_median = f"{theirs.median / ours.median:.2f} by medians"
    return Measured(what=what, value=theirs.best / ours.best, unit="x", required=required, detail=by_median)


def require_equal(ours: pa.Table, theirs: pa.Table, what: str) -> None:
    """Unequal unless both hold the same columns, types and bits in the same order; NaN equals NaN."""
    if ours.column_names != theirs.column_names or ours.num_rows != theirs.num_rows:
        sides = [f"{side.num_rows} rows of {', '.join(side.column_names)}" for side in (ours, theirs)]
        raise Unequal(f"{what}: {' against '.join(sides)}")
    for name in ours.column_names:
        mine, other = (_bits(table.column(name).combine_chunks()) for table in (ours, theirs))
        if mine.type != other.type or not mine.equals(other):
            raise Unequal(f"{what}: column {name} differs ({mine.type} and {other.type})")


def _bits(column: pa.Array) -> pa.Array:
    if pa.types.is_float32(column.type):
        return column.view(pa.int32())
    if pa.types.is_float64(column.type):
        return column.view(pa.int64())
    return column
