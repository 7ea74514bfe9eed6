"""Validate: the whole history of a view judged by its contract, and the memory that this takes.

Every numeric field is bounded on both sides, and every row keeps its rules; validate says so itself, or there is no
figure. It runs in a process of its own, so that the peak is its own; the time holds the import of Great Expectations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from benchmarks import world
from benchmarks.measure import Measured, Result, Setting
from benchmarks.world import Shape
from benchmarks.write_step import in_process

NAME = "validate"
WHAT = "validate a history of DuckDB by its contract: rows/s and peak memory"
MEMORY_GIB_MAX = 2.0
#: What DuckDB may take, as a new repository has it.
MEMORY_LIMIT = "512MB"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A history of one view."""

    rows: int
    meters: int
    features: int


SIZES = {
    "tiny": Size(rows=3_000, meters=300, features=3),
    "small": Size(rows=200_000, meters=20_000, features=20),
    "full": Size(rows=5_000_000, meters=100_000, features=50),
}


def run(setting: Setting) -> Result:
    """Seconds, rows per second and peak memory of one validation."""
    size = SIZES[setting.size]
    shape = Shape(rows=size.rows, meters=size.meters, features=size.features)
    folder = setting.work / "validate"
    world.make_repository(folder, size.features, memory_limit=MEMORY_LIMIT)
    setting.show(f"writing a history of {size.rows:,} x {size.features}")
    world.fill_history(folder, shape)
    setting.show("validate")
    report = in_process("validate", folder, shape)
    measured = [
        Measured(
            what="validate",
            value=size.rows / report["s"],
            unit="rows/s",
            detail=f"{report['s']:.2f} s with its imports",
        ),
        Measured(
            what="validate, peak memory",
            value=report["rss"] / (1 << 30),
            unit="GiB",
            required=MEMORY_GIB_MAX,
            sense="at most",
        ),
    ]
    notes = [f"{2 * size.features + 3} rules; {report['cpu_s']:.2f} s of processor"]
    return Result(name=NAME, sizes=asdict(size), measured=measured, notes=notes)
